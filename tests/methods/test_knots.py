from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.linalg.spectral import RANK_CUT
from tests.linalg.matrices import distance, with_spectrum

knots = magmerge.method("knots").fn
ties = magmerge.method("ties").fn


def slow_knots(deltas: Tensor, density: float = 0.2) -> Tensor:
    """A decomposition of the task vectors side by side, then TIES of what is right of U."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    left, values, right = torch.linalg.svd(torch.cat(list(matrices), dim=1), full_matrices=False)
    kept = int((values > RANK_CUT * values[0]).sum()) if values[0] > 0 else 0
    if not kept:
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    parts = (values[:kept, None] * right[:kept]).split(matrices.shape[2], dim=1)
    merged = ties(torch.stack(parts), density=density, scope="tensor")
    return (left[:, :kept] @ merged).reshape(deltas.shape[1:])


def stacked(experts: int, shape: tuple[int, int], spectrum: str) -> Tensor:
    return torch.stack([with_spectrum(shape, spectrum, seed) for seed in range(experts)])


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15), (3, 200)], ids=str)
@pytest.mark.parametrize("spectrum", ["normal", "thousand", "low rank", "zero"])
@pytest.mark.parametrize(("experts", "density"), [(1, 0.2), (3, 0.2), (3, 1.0), (8, 0.05)])
def test_equals_the_definition(
    shape: tuple[int, int], spectrum: str, experts: int, density: float
) -> None:
    deltas = stacked(experts, shape, spectrum).double()
    assert distance(knots(deltas, density=density), slow_knots(deltas, density)) < 1e-4


def test_float32_is_as_good() -> None:
    deltas = stacked(3, (20, 30), "normal")
    assert distance(knots(deltas), slow_knots(deltas)) < 1e-4


def test_all_of_one_expert_is_that_expert() -> None:
    deltas = stacked(1, (9, 7), "normal")
    assert torch.allclose(knots(deltas, density=1.0), deltas[0], atol=1e-8)


def test_experts_that_share_no_direction_are_all_kept() -> None:
    """Each has rows of its own, so that no vote is against it."""
    deltas = torch.zeros(2, 4, 5)
    deltas[0, :2], deltas[1, 2:] = stacked(2, (2, 5), "normal")
    assert torch.allclose(knots(deltas, density=1.0), deltas.sum(0), atol=1e-8)


def test_tiny_experts_underflow_nowhere() -> None:
    deltas = stacked(2, (9, 7), "normal").double()
    assert distance(knots(deltas * 2.0**-300) * 2.0**300, knots(deltas)) < 1e-12


def test_a_convolution_is_a_matrix_and_a_vector_gets_the_mean() -> None:
    deltas = stacked(3, (8, 18), "normal")
    assert torch.equal(knots(deltas.reshape(3, 8, 2, 3, 3)), knots(deltas).reshape(8, 2, 3, 3))
    assert knots(torch.tensor([[1.0, 2.0], [3.0, -6.0]])).tolist() == [2.0, -2.0]
