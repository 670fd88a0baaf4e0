from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from tests.contracts.laws import rows_for

karcher = magmerge.method("karcher").fn


def slow_karcher(weights: Tensor, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """The iteration on the whole vectors, in float64."""
    flat = weights.double().reshape(len(weights), -1)
    norms = [math.sqrt(sum(v * v for v in one.tolist())) for one in flat]
    units = [one / norm for one, norm in zip(flat, norms, strict=True) if norm > 0]
    mean = sum(units) / len(units)
    mean = units[0] if float(mean.norm()) < tol else mean / mean.norm()
    for _ in range(max_iter):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = min(1.0, max(-1.0, float(unit @ mean)))
            angle = math.acos(cosine)
            if angle >= tol:
                step += angle / math.sin(angle) * (unit - cosine * mean) / len(units)
        size = float(step.norm())
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / mean.norm()
    return (sum(norms) / len(norms) * mean).reshape(weights.shape[1:])


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("experts", [2, 3, 5])
@pytest.mark.parametrize("max_iter", [0, 1, 10])
def test_equals_the_iteration_on_whole_vectors(
    shape: tuple[int, ...], experts: int, max_iter: int
) -> None:
    weights = rows_for(None, shape, experts=experts)
    weights *= torch.arange(1, experts + 1).reshape(-1, *[1] * len(shape))
    found = karcher(weights, max_iter=max_iter)
    assert torch.allclose(found.double(), slow_karcher(weights, max_iter), atol=1e-5)


def test_two_experts_meet_in_the_middle_of_the_arc() -> None:
    pair = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    expected = 3 * math.sqrt(0.5)
    assert torch.allclose(karcher(pair), torch.tensor([expected, expected]))


def test_is_the_nearest_point_by_squared_angles() -> None:
    units = torch.nn.functional.normalize(rows_for(None, (4,)).double(), dim=1)
    units[1:] = torch.nn.functional.normalize(units[1:] + 2 * units[0], dim=1)
    mean = karcher(units, max_iter=200, tol=1e-12)

    def cost(point: Tensor) -> float:
        point = point / point.norm()
        return float(torch.arccos((units @ point).clamp(-1, 1)).square().sum())

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = mean + 1e-3 * torch.randn(4, generator=generator, dtype=torch.float64)
        assert cost(mean) <= cost(other)


def test_one_expert_and_copies_are_left_as_they_are() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.equal(karcher(one), one[0])
    assert torch.allclose(karcher(one.expand(3, 5, 9)), one[0], rtol=1e-6)


def test_a_tensor_of_zeros_only_shortens() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.allclose(karcher(torch.cat([one, 0 * one])), one[0] / 2, rtol=1e-6)
    assert not karcher(torch.zeros(3, 5)).any()


def test_opposite_experts_give_a_finite_result() -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = karcher(torch.cat([one, -one]))
    assert torch.allclose(found, one[0], rtol=1e-6)
