from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.methods.iso import shares
from tests.linalg.matrices import distance, slow_polar, slow_triplets, spectra, with_spectrum

iso_c = magmerge.method("iso_c").fn
iso_cts = magmerge.method("iso_cts").fn
SHAPES = [(20, 12), (12, 20), (15, 15), (300, 260)]
SPECTRA = ["normal", "thousand", "million", "power", "low rank", "zero"]


def slow_iso_c(deltas: Tensor) -> Tensor:
    """Algorithm 1 of the paper with a decomposition in float64."""
    total = deltas.double().sum(0).reshape(deltas.shape[1], -1)
    values = slow_triplets(total, min(total.shape))[1]
    return (slow_polar(total) * values.sum() / min(total.shape)).reshape(deltas.shape[1:])


def slow_iso_cts(deltas: Tensor, fraction: float) -> Tensor:
    """Algorithm 2 of the paper with decompositions in float64."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    directions = min(matrices.shape[1:])
    own = round((directions - int(directions * fraction)) / len(deltas))
    own = min(own, directions // len(deltas))
    common = slow_triplets(matrices.sum(0), directions - own * len(deltas))
    found = [common]
    for matrix in matrices:
        rest = matrix - common[0] @ common[0].T @ matrix
        found.append(slow_triplets(rest, own, float(matrix.norm())))
    left, values, right = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    if not len(values):
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    flat = values.sum() / directions
    return (slow_polar(left) @ slow_polar(right).T * flat).reshape(deltas.shape[1:])


def stacked(experts: int, shape: tuple[int, int], spectrum: str) -> Tensor:
    return torch.stack([with_spectrum(shape, spectrum, seed) for seed in range(experts)])


@pytest.mark.parametrize(
    ("shape", "spectrum", "experts"), spectra(SHAPES, SPECTRA, (3, 1)), ids=str
)
def test_iso_c_equals_the_definition(shape: tuple[int, int], spectrum: str, experts: int) -> None:
    deltas = stacked(experts, shape, spectrum)
    assert distance(iso_c(deltas), slow_iso_c(deltas)) < 1e-4


@pytest.mark.parametrize(
    ("shape", "spectrum", "experts"), spectra(SHAPES, SPECTRA, (3, 1, 8)), ids=str
)
def test_iso_cts_equals_the_definition(shape: tuple[int, int], spectrum: str, experts: int) -> None:
    deltas = stacked(experts, shape, spectrum)
    assert distance(iso_cts(deltas), slow_iso_cts(deltas, 0.8)) < 1e-4


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("experts", [2, 5, 40])
def test_iso_cts_for_any_fraction_and_number(fraction: float, experts: int) -> None:
    deltas = stacked(experts, (14, 10), "normal")
    found = iso_cts(deltas, common_fraction=fraction)
    assert distance(found, slow_iso_cts(deltas, fraction)) < 1e-4


@pytest.mark.parametrize("directions", [1, 2, 9, 768])
@pytest.mark.parametrize("experts", [1, 2, 8, 20])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
def test_shares_fill_all_directions(directions: int, experts: int, fraction: float) -> None:
    common, own = shares(directions, experts, fraction)
    assert common + experts * own == directions
    assert min(common, own) >= 0


def test_all_singular_values_are_their_mean() -> None:
    deltas = stacked(3, (20, 12), "thousand")
    values = torch.linalg.svdvals(deltas.double().sum(0))
    found = torch.linalg.svdvals(iso_c(deltas, lambda_=2.0).double())
    assert torch.allclose(found, 2 * values.mean().expand(12), rtol=1e-5)


@pytest.mark.parametrize("merge", [iso_c, iso_cts])
def test_convolutions_are_matrices_and_vectors_get_the_mean(merge: object) -> None:
    deltas = stacked(3, (8, 18), "normal")
    folded = merge(deltas.reshape(3, 8, 2, 3, 3))
    assert torch.equal(folded, merge(deltas).reshape(8, 2, 3, 3))
    vectors = torch.tensor([[1.0, 2.0], [3.0, -6.0]])
    assert merge(vectors, lambda_=0.5).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("merge", [iso_c, iso_cts])
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)], ids=str)
def test_slender_matrices(merge: object, shape: tuple[int, int]) -> None:
    deltas = stacked(3, shape, "normal")
    assert distance(merge(deltas), slow_iso_c(deltas)) < 1e-4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_iso_cts_may_have_no_common_directions_or_nothing_else(share: float) -> None:
    deltas = torch.randn(2, 128, 160, generator=torch.Generator().manual_seed(0))
    merged = magmerge.method("iso_cts").fn(deltas, common_fraction=share)
    values = torch.linalg.svdvals(merged.double())
    assert torch.allclose(values, values[0].expand_as(values), rtol=1e-3)
