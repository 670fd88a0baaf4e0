from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.journal import listening
from magmerge.linalg import in_turn, spectral
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.leading import leading
from magmerge.linalg.polar import polar
from magmerge.linalg.spectral import RANK_CUT, decompose_above_cut, summed
from tests.linalg.matrices import distance, slow_polar, slow_triplets, with_spectrum

SHAPE = (3, 14, 10)


def random_deltas() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def read_from(deltas: Tensor) -> InTurn:
    flat = deltas.reshape(len(deltas), -1)

    def read(place: int | None, start: int, stop: int) -> Tensor:
        rows = slice(None) if place is None else slice(place, place + 1)
        return flat[rows, start:stop].clone()

    return InTurn(read, tuple(deltas.shape), deltas.dtype)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turn, "RUN", 33)


def test_is_the_task_vectors_one_after_the_other() -> None:
    deltas = random_deltas()
    layer = read_from(deltas)
    assert (len(layer), layer.ndim, layer.shape, layer.dtype) == (3, 3, SHAPE, torch.float32)
    for _ in range(2):
        assert all(map(torch.equal, layer, deltas))
    assert torch.equal(summed(layer), summed(deltas))


def test_may_be_turned_over() -> None:
    deltas = random_deltas()
    layer = read_from(deltas).transpose(1, 2)
    assert layer.shape == (3, 10, 14)
    assert all(map(torch.equal, layer, deltas.transpose(1, 2)))
    assert torch.equal(summed(layer), summed(deltas).T)
    assert summed(layer).is_contiguous()
    assert layer.transpose(1, 2).shape == SHAPE


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi", "knots"])
@pytest.mark.parametrize("turned", [False, True])
def test_gives_the_same_bits_as_a_tensor(name: str, turned: bool) -> None:
    method, deltas = magmerge.method(name), random_deltas()
    layer = read_from(deltas)
    assert method.in_turn
    if turned:
        layer, deltas = layer.transpose(1, 2), deltas.transpose(1, 2)
    assert torch.equal(method.fn(layer), method.fn(deltas))


@pytest.mark.parametrize("spectrum", ["normal", "million", "low rank"])
@pytest.mark.parametrize("shape", [(300, 40), (41, 40), (40, 40)], ids=str)
def test_a_large_matrix_is_decomposed_by_its_triangle(
    shape: tuple[int, int], spectrum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "REDUCED", 40)
    matrix = with_spectrum(shape, spectrum) * 1e-3
    with listening() as notes:
        left, values, right, _ = decompose_above_cut(matrix, 2.0**-10, None, "a test")
    assert notes == ["singular value decomposition used: a test"]
    exact = slow_triplets(matrix, min(shape))[1] * 2**10
    count = int((exact > RANK_CUT * exact[0]).sum())
    assert torch.allclose(values, exact[:count], rtol=1e-8, atol=0)
    for vectors in (left, right):
        assert torch.allclose(vectors.T @ vectors, torch.eye(count).double(), atol=1e-8)
    assert distance((left * values) @ right.T, matrix.double() * 2**10) < 2e-6


def test_what_falls_back_by_a_triangle_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "REDUCED", 40)
    matrix = with_spectrum((90, 40), "normal")
    with listening() as notes:
        found = leading(matrix, 7, tolerance=0.0, dtype=torch.float64)
        edge = torch.cat([torch.eye(40), torch.zeros(3, 40)])
        edge[39, 39] = 1.001 * RANK_CUT
        factor = polar(edge).factor
    assert len(notes) == 2
    assert found.left.dtype == torch.float64
    left, _, right = slow_triplets(matrix, 7)
    assert distance(found.left @ found.right.T, left @ right.T) < 1e-8
    assert distance(factor, slow_polar(edge)) < 1e-6
