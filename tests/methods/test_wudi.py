from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.linalg.spectral import RANK_CUT
from tests.linalg.matrices import distance, with_spectrum

wudi = magmerge.method("wudi").fn


def slow_wudi(deltas: Tensor) -> Tensor:
    """The least squares problem as the paper states it, all rows at once, by a pseudo-inverse."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    alive = [matrix for matrix in matrices if matrix.norm() > 0]
    if not alive:
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    # (D - D_k) D_k^T / |D_k| = 0 for all k: D [...D_k^T / |D_k|...] = [...D_k D_k^T / |D_k|...]
    known = torch.cat([matrix.T / matrix.norm() for matrix in alive], dim=1)
    wanted = torch.cat([matrix @ matrix.T / matrix.norm() for matrix in alive], dim=1)
    return (wanted @ torch.linalg.pinv(known, rtol=RANK_CUT)).reshape(deltas.shape[1:])


def loss(merged: Tensor, deltas: Tensor) -> Tensor:
    merged, deltas = merged.double(), deltas.double()
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


def stacked(experts: int, shape: tuple[int, int], spectrum: str) -> Tensor:
    return torch.stack([with_spectrum(shape, spectrum, seed) for seed in range(experts)])


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15), (3, 200)], ids=str)
@pytest.mark.parametrize("spectrum", ["normal", "thousand", "power", "low rank", "zero"])
@pytest.mark.parametrize("experts", [1, 3, 8])
def test_equals_the_definition(shape: tuple[int, int], spectrum: str, experts: int) -> None:
    deltas = stacked(experts, shape, spectrum)
    assert distance(wudi(deltas), slow_wudi(deltas)) < 1e-4


def test_descent_from_the_sum_tends_to_it() -> None:
    """The authors' start and objective, with plain gradient steps until nothing changes."""
    deltas = stacked(3, (6, 24), "normal").double() * 1e3
    found = deltas.sum(0)
    for _ in range(20000):
        slope = sum(((found - d) @ d.T) @ d / d.square().sum() for d in deltas)
        found = found - 0.5 * slope
    assert distance(wudi(deltas), found) < 1e-4


def test_no_other_task_vector_disturbs_less() -> None:
    deltas = stacked(4, (10, 16), "power")
    merged = wudi(deltas)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = merged + 1e-5 * torch.randn(10, 16, generator=generator)
        assert loss(merged, deltas) < loss(other, deltas)
    assert loss(merged, deltas) < loss(deltas.sum(0), deltas)


def test_one_expert_is_its_own_best() -> None:
    deltas = stacked(1, (9, 7), "normal")
    assert torch.allclose(wudi(deltas), deltas[0], rtol=1e-4, atol=1e-9)


def test_an_expert_of_zeros_has_no_say() -> None:
    deltas = stacked(2, (9, 7), "normal")
    assert torch.allclose(wudi(torch.cat([deltas, torch.zeros(1, 9, 7)])), wudi(deltas))


def test_experts_of_very_different_size_underflow_nowhere() -> None:
    deltas = stacked(2, (9, 7), "normal") * torch.tensor([1e-25, 1e-3]).reshape(2, 1, 1)
    assert distance(wudi(deltas), slow_wudi(deltas)) < 1e-4


def test_a_convolution_is_a_matrix_and_a_vector_gets_the_mean() -> None:
    deltas = stacked(3, (8, 18), "normal")
    assert torch.equal(wudi(deltas.reshape(3, 8, 2, 3, 3)), wudi(deltas).reshape(8, 2, 3, 3))
    assert wudi(torch.tensor([[1.0, 2.0], [3.0, -6.0]])).tolist() == [2.0, -2.0]
