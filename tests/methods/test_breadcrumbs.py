from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.methods.sparsify import band_ranks
from tests.contracts.laws import rows_for

WEIGHTS = [1.0, 2.0, 0.5]


def slow_mask(delta: Tensor, density: float, gamma: float) -> list[bool]:
    """Which entries stay: a sort by magnitude, then positions."""
    values = delta.double().reshape(-1).tolist()
    count = len(values)
    order = sorted(range(count), key=lambda j: (abs(values[j]), -j))
    stay = max(1, math.floor(density * count + 1e-9))
    top = math.floor(gamma * count + 1e-9)
    bottom = max(0, count - stay - top)
    kept = set(order[bottom : bottom + stay])
    return [j in kept for j in range(count)]


def slow_sparse(deltas: Tensor, density: float, gamma: float) -> Tensor:
    rows = []
    for delta in deltas:
        mask = slow_mask(delta, density, gamma)
        values = delta.double().reshape(-1).tolist()
        rows.append([v if keep else 0.0 for v, keep in zip(values, mask, strict=True)])
    return torch.tensor(rows, dtype=torch.float64).reshape(deltas.shape)


def slow_breadcrumbs(sparse: Tensor, lam: float, weights: list[float], mean: bool) -> Tensor:
    out = torch.zeros_like(sparse[0])
    for weight, delta in zip(weights, sparse, strict=True):
        out = out + weight * delta
    return lam * out / (sum(weights) if mean else 1)


@pytest.mark.parametrize(("density", "gamma"), [(0.143, 0.007), (0.5, 0.1), (0.9, 0.3), (0.3, 0.0)])
@pytest.mark.parametrize("mean", [False, True])
def test_equals_a_sort_of_each_task_vector(density: float, gamma: float, mean: bool) -> None:
    deltas = rows_for(None, (13, 17))
    found = magmerge.method("breadcrumbs").fn(
        deltas, density=density, gamma=gamma, lambda_=0.7, weights=WEIGHTS, normalize=mean
    )
    sparse = slow_sparse(deltas, density, gamma)
    assert torch.allclose(found.double(), slow_breadcrumbs(sparse, 0.7, WEIGHTS, mean), atol=1e-6)


def test_the_defaults_are_the_papers() -> None:
    deltas = rows_for(None, (40, 50))
    found = magmerge.method("breadcrumbs").fn(deltas[:1])
    kept = found[found != 0].abs() / 0.3
    sizes = deltas[0].abs().reshape(-1).sort().values
    assert len(kept) == 286
    assert math.isclose(kept.max(), sizes[2000 - 14 - 1], rel_tol=1e-6)
    assert math.isclose(kept.min(), sizes[1700], rel_tol=1e-6)


def test_counts_take_decimals_as_written() -> None:
    assert band_ranks(100, 0.29, 0.07) == (7, 36)
    assert band_ranks(10, 0.95, 0.2) == (1, 10)
    assert band_ranks(3, 0.143, 0.007) == (0, 1)


def test_equal_magnitudes_are_taken_in_order() -> None:
    deltas = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0]])
    found = magmerge.method("breadcrumbs").fn(deltas, density=0.4, gamma=0.2, lambda_=1.0)
    assert found.tolist() == [0.0, -1.0, 1.0, 0.0, 0.0]


def test_density_one_is_task_arithmetic() -> None:
    deltas = rows_for(None, (6, 7))
    found = magmerge.method("breadcrumbs").fn(deltas, density=1.0, gamma=0.2)
    assert torch.equal(found, magmerge.method("task_arithmetic").fn(deltas))


def test_rescaling_divides_by_density_or_restores_the_sum_of_magnitudes() -> None:
    deltas = rows_for(None, (13, 17))
    fn = magmerge.method("breadcrumbs").fn
    sparse = slow_sparse(deltas, 0.5, 0.1)
    found = fn(deltas, density=0.5, gamma=0.1, lambda_=1.0, rescale="inverse")
    assert torch.allclose(found.double(), sparse.sum(0) / 0.5, atol=1e-5)
    restored = torch.zeros_like(sparse[0])
    for delta, one in zip(deltas.double(), sparse, strict=True):
        restored += one * delta.abs().sum() / one.abs().sum()
    found = fn(deltas, density=0.5, gamma=0.1, lambda_=1.0, rescale="l1")
    assert torch.allclose(found.double(), restored, atol=1e-5)


def test_with_ties_it_elects_among_what_stays() -> None:
    deltas = rows_for(None, (13, 17))
    found = magmerge.method("breadcrumbs_ties").fn(
        deltas, density=0.5, gamma=0.1, lambda_=0.7, weights=WEIGHTS
    )
    expected = slow_elected(slow_sparse(deltas, 0.5, 0.1), WEIGHTS, mean=True) * 0.7
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_mergekits_sum_of_the_elected() -> None:
    deltas = rows_for(None, (13, 17))
    found = magmerge.method("breadcrumbs_ties").fn(
        deltas, density=0.5, gamma=0.1, weights=WEIGHTS, normalize=False, vote="weighted"
    )
    sparse = slow_sparse(deltas, 0.5, 0.1)
    assert torch.allclose(
        found.double(), slow_elected(sparse, WEIGHTS, mean=False, weighted=True), atol=1e-6
    )


def slow_elected(
    sparse: Tensor, weights: list[float], *, mean: bool, weighted: bool = False
) -> Tensor:
    """The weighted mean or sum of the entries that have the sign of their sum, entry by entry."""
    flat = sparse.reshape(len(sparse), -1)
    out = torch.zeros(flat.shape[1], dtype=torch.float64)
    for j in range(flat.shape[1]):
        column = flat[:, j].tolist()
        ballots = weights if weighted else [1.0] * len(column)
        mass = sum(b * v for b, v in zip(ballots, column, strict=True))
        agreeing = [(w, v) for w, v in zip(weights, column, strict=True) if v * mass > 0]
        total = sum(w * v for w, v in agreeing)
        out[j] = total / (sum(w for w, _ in agreeing) if mean and agreeing else 1)
    return out.reshape(sparse.shape[1:])
