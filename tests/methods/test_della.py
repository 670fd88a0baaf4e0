from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.linalg.draws import uniforms
from magmerge.linalg.selection import by_rank
from magmerge.methods.della import dropped_by_rank
from tests.contracts.laws import rows_for
from tests.methods.test_breadcrumbs import slow_elected

SEEDS = [11, 12, 13]


def slow_chances(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The chance of every entry to stay, by a sort of each row."""
    rows = delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)
    out = torch.zeros(rows.shape, dtype=torch.float64)
    for i, row in enumerate(rows.tolist()):
        order = sorted(range(len(row)), key=lambda j: (abs(row[j]), j))
        for rank, j in enumerate(order):
            share = rank / (len(row) - 1) if len(row) > 1 else 0.5
            out[i, j] = density - epsilon + 2 * epsilon * share
    return out.reshape(delta.shape)


def slow_sampled(deltas: Tensor, density: float, epsilon: float, rescale: str) -> Tensor:
    kept = []
    for delta, seed in zip(deltas, SEEDS, strict=True):
        chances = slow_chances(delta, density, epsilon)
        draws = uniforms(seed, delta.shape).double()
        stays = (draws < chances).double() * delta.double()
        if rescale == "inverse":
            stays = stays / chances
        elif rescale == "l1":
            stays = stays * delta.double().abs().sum() / (stays.abs().sum() or 1.0)
        kept.append(stays)
    return torch.stack(kept)


@pytest.mark.parametrize("shape", [(9, 31), (40,), (5, 3, 7), (6, 1)], ids=str)
@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
def test_equals_a_sort_of_each_row(shape: tuple[int, ...], rescale: str) -> None:
    deltas = rows_for(None, shape)
    expected = slow_sampled(deltas, 0.6, 0.2, rescale)
    params = {"density": 0.6, "epsilon": 0.2, "rescale": rescale, "seeds": SEEDS}
    weights = [1.0, 2.0, 0.5]
    found = magmerge.method("della_linear").fn(deltas, lambda_=0.7, weights=weights, **params)
    total = sum(w * e for w, e in zip(weights, expected, strict=True))
    assert torch.allclose(found.double(), 0.7 * total, atol=1e-5)
    found = magmerge.method("della_linear").fn(deltas, weights=weights, normalize=True, **params)
    assert torch.allclose(found.double(), total / 3.5, atol=1e-5)
    for mean in (True, False):
        found = magmerge.method("della").fn(deltas, weights=weights, normalize=mean, **params)
        assert torch.allclose(found.double(), slow_elected(expected, weights, mean=mean), atol=1e-5)


def test_large_entries_stay_more_often() -> None:
    row = torch.linspace(1, 2, 2001).repeat(200, 1)
    (kept,) = dropped_by_rank(row.unsqueeze(0), 0.5, 0.15, "none", [5])
    rate = (kept != 0).double().mean(0)
    for place, expected in ((0, 0.35), (1000, 0.5), (2000, 0.65)):
        near = rate[max(0, place - 25) : place + 25]
        assert abs(float(near.mean()) - expected) < 0.02


def test_the_expectation_is_the_task_vector() -> None:
    delta = rows_for(None, (1, 64), experts=1)
    draws = [dropped_by_rank(delta, 0.5, 0.15, "inverse", [seed])[0] for seed in range(2000)]
    mean = torch.stack(draws).mean(0)
    # At most sqrt((1 - 0.35) / 0.35 / 2000) = 0.03 of each entry, once in three times.
    assert torch.allclose(mean, delta[0], rtol=0.15)


def test_among_equals_the_first_is_the_smallest() -> None:
    rows = torch.tensor([[1.0, -1.0, 0.5, 1.0], [0.0, 0.0, -0.0, 0.0]])
    ladder = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = [[0.2, 0.3, 0.1, 0.4], [0.1, 0.2, 0.3, 0.4]]
    assert torch.equal(by_rank(rows, ladder), torch.tensor(expected))
    assert torch.equal(by_rank(rows.double(), ladder).float(), torch.tensor(expected))


def test_density_one_drops_nothing() -> None:
    deltas = rows_for(None, (6, 7))
    assert torch.equal(magmerge.method("della_linear").fn(deltas, density=1.0), sum_of(deltas))


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.15, 0.15)])
def test_chances_beyond_one_or_zero_are_refused(density: float, epsilon: float) -> None:
    with pytest.raises(ParameterError, match="not within") as caught:
        magmerge.method("della").fn(rows_for(None, (2, 2)), density=density, epsilon=epsilon)
    assert "epsilon below" in caught.value.remedy


def test_ratio_is_one_where_nothing_stays() -> None:
    (kept,) = dropped_by_rank(torch.zeros(1, 4, 4), 0.5, 0.1, "l1", [1])
    assert not kept.any()
    assert not math.isnan(float(kept.sum()))


def sum_of(deltas: Tensor) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total = total + delta
    return total
