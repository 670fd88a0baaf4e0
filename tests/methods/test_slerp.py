from __future__ import annotations

import math

import pytest
import torch

import magmerge

slerp = magmerge.method("slerp").fn


def test_goes_along_the_circle_at_an_even_pace() -> None:
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for t in (0.25, 0.5, 0.9):
        angle = t * math.pi / 2
        expected = torch.tensor([math.cos(angle), math.sin(angle)])
        assert torch.allclose(slerp(ends, t=t), expected, atol=1e-6)


def test_equals_the_formula_in_float64() -> None:
    pair = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    a, b = pair.double()
    angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    expected = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
    assert torch.allclose(slerp(pair, t=0.3).double(), expected, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_are_the_experts_to_the_last_bit(t: float) -> None:
    pair = torch.randn(2, 6, 5)
    assert torch.equal(slerp(pair, t=t), pair[int(t)])


def test_parallel_and_zero_vectors_are_interpolated_linearly() -> None:
    one = torch.tensor([3.0, 4.0])
    assert torch.allclose(slerp(torch.stack([one, 2 * one]), t=0.5), 1.5 * one)
    assert torch.allclose(slerp(torch.stack([torch.zeros(2), one]), t=0.5), 0.5 * one)
