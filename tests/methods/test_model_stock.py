from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from tests.contracts.laws import rows_for

model_stock = magmerge.method("model_stock").fn


def slow_ratio(vectors: list[list[float]]) -> float:
    """t of one layer or row, pair by pair."""
    count = len(vectors)
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            dot = sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
            size = math.hypot(*vectors[i]) * math.hypot(*vectors[j])
            cosines.append(dot / size if size else 0.0)
    mean = sum(cosines) / len(cosines)
    return count * mean / (1 + (count - 1) * mean)


def slow_model_stock(deltas: Tensor, filter_wise: bool) -> Tensor:
    mean = deltas.double().mean(0)
    length = deltas.shape[-1] if filter_wise else deltas[0].numel()
    rows = deltas.double().reshape(len(deltas), -1, length)
    ratios = [slow_ratio(rows[:, r].tolist()) for r in range(rows.shape[1])]
    scaled = mean.reshape(-1, length) * torch.tensor(ratios, dtype=torch.float64).unsqueeze(1)
    return scaled.reshape(mean.shape)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 6)], ids=str)
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("experts", [2, 3])
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_equals_the_paper(
    shape: tuple[int, ...], filter_wise: bool, experts: int, size: float
) -> None:
    common = rows_for(None, shape, experts=1)
    deltas = (rows_for(None, shape, experts=experts) + common) * size
    found = model_stock(deltas, filter_wise=filter_wise)
    expected = slow_model_stock(deltas, filter_wise)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_copies_give_that_expert(filter_wise: bool) -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = model_stock(one.expand(3, 5, 9), filter_wise=filter_wise)
    assert torch.allclose(found, one[0], rtol=1e-6)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_orthogonal_experts_give_the_base(filter_wise: bool) -> None:
    found = model_stock(torch.eye(3).unsqueeze(1), filter_wise=filter_wise)
    assert torch.equal(found, torch.zeros(1, 3))


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_experts_give_the_base(filter_wise: bool) -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert not model_stock(torch.cat([one, -one]), filter_wise=filter_wise).any()


@pytest.mark.parametrize("filter_wise", [False, True])
def test_an_expert_that_changes_nothing_has_cosine_zero(filter_wise: bool) -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = model_stock(torch.cat([one, one, 0 * one]), filter_wise=filter_wise)
    # c = 1/3, t = 1 / (1 + 2/3) = 0.6, and the mean is two thirds.
    assert torch.allclose(found, 0.4 * one[0], rtol=1e-5)
