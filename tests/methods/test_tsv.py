from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.journal import listening
from tests.linalg.matrices import distance, slow_polar, slow_triplets, spectra, with_spectrum

tsv_m = magmerge.method("tsv_m").fn
SPECTRA = ["normal", "thousand", "million", "power", "low rank", "zero"]


def slow_tsv(deltas: Tensor) -> Tensor:
    """Algorithm 1 of the paper with decompositions in float64."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    count = max(1, min(matrices.shape[1:]) // len(deltas))
    parts = zip(*(slow_triplets(matrix, count) for matrix in matrices), strict=True)
    left, values, right = (torch.cat(part, dim=-1) for part in parts)
    if not len(values):
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    return (slow_polar(left) * values @ slow_polar(right).T).reshape(deltas.shape[1:])


def stacked(experts: int, shape: tuple[int, int], spectrum: str) -> Tensor:
    return torch.stack([with_spectrum(shape, spectrum, seed) for seed in range(experts)])


@pytest.mark.parametrize(
    ("shape", "spectrum", "experts"),
    spectra([(20, 12), (12, 20), (15, 15), (300, 260)], SPECTRA, (3, 1, 8)),
    ids=str,
)
def test_equals_the_definition(shape: tuple[int, int], spectrum: str, experts: int) -> None:
    deltas = stacked(experts, shape, spectrum)
    assert distance(tsv_m(deltas), slow_tsv(deltas)) < 1e-4


@pytest.mark.parametrize("shape", [(3, 2), (1, 4), (4, 1), (1, 1)], ids=str)
def test_more_experts_than_directions_have_one_each(shape: tuple[int, int]) -> None:
    deltas = stacked(7, shape, "normal")
    assert distance(tsv_m(deltas), slow_tsv(deltas)) < 1e-4


def test_a_convolution_is_a_matrix_of_its_filters() -> None:
    deltas = stacked(3, (8, 18), "normal").reshape(3, 8, 2, 3, 3)
    assert torch.equal(tsv_m(deltas), tsv_m(deltas.reshape(3, 8, 18)).reshape(8, 2, 3, 3))


def test_a_vector_gets_the_mean() -> None:
    deltas = torch.tensor([[1.0, 2.0], [3.0, -6.0]])
    assert tsv_m(deltas, lambda_=0.5).tolist() == [1.0, -1.0]


def test_an_expert_of_zeros_adds_nothing_but_its_share_of_the_rank() -> None:
    deltas = stacked(2, (12, 9), "normal")
    with_zeros = torch.cat([deltas, torch.zeros(1, 12, 9)])
    found = tsv_m(with_zeros)
    assert distance(found, slow_tsv(with_zeros)) < 1e-4
    assert int(torch.linalg.matrix_rank(found)) == 6


@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-3])
def test_experts_that_nearly_agree(change: float) -> None:
    """Their directions do too, and a polar factor multiplies what rounding does to them."""
    deltas = stacked(1, (280, 260), "normal") + change * stacked(3, (280, 260), "power")
    with listening() as notes:
        found = tsv_m(deltas)
    if not notes:
        assert distance(found, slow_tsv(deltas)) < 1e-4
    assert found.isfinite().all()


def test_the_limit_of_the_formula_for_orthogonal_experts_is_their_sum() -> None:
    deltas = torch.zeros(2, 6, 6)
    deltas[0, :3, :3] = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    deltas[1, 3:, 3:] = torch.diag(torch.tensor([5.0, 4.0, 0.5]))
    assert torch.allclose(tsv_m(deltas), deltas.sum(0), atol=1e-5)
