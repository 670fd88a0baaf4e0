"""Low-rank approximations against the singular value decomposition in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magmerge.core.journal import listening
from magmerge.linalg.best_rank import (
    SMALL,
    best_rank,
    rank_by_energy,
    rank_for_energy,
    relative_error,
    zero_rows,
)
from magmerge.linalg.spectral import Triplets
from tests.linalg.matrices import SHAPES, SPECTRA, spectra, with_spectrum

FLOAT32 = 2e-7
"""What the factors' own rounding to float32 may add to a relative error."""
LARGE = [shape for shape in SHAPES if min(shape) > SMALL]


def best_error(matrix: Tensor, rank: int) -> float:
    values = torch.linalg.svdvals(matrix.double())
    whole = float(values.norm())
    return float(values[rank:].norm()) / whole if whole else 0.0


def measured_error(matrix: Tensor, found: Triplets) -> float:
    product = (found.left.double() * found.values.double()) @ found.right.double().T
    whole = float(matrix.double().norm())
    return float((matrix.double() - product).norm()) / whole if whole else 0.0


def of_values(values: Tensor, shape: tuple[int, int] = (400, 320)) -> Tensor:
    """A float32 matrix with these singular values, as many as it has columns."""
    generator = torch.Generator().manual_seed(5)
    left, right = (
        torch.linalg.qr(torch.randn(n, shape[1], generator=generator, dtype=torch.float64))[0]
        for n in shape
    )
    return ((left * values.double()) @ right.T).float()


def check(matrix: Tensor, rank: int) -> Triplets:
    found = best_rank(matrix, rank)
    left, values, right, error = found
    count = len(values)
    assert count <= min(rank, *matrix.shape)
    assert left.shape == (matrix.shape[0], count)
    assert right.shape == (matrix.shape[1], count)
    for basis in (left, right):
        off = basis.double().T @ basis.double() - torch.eye(count)
        assert count == 0 or float(off.abs().max()) < 1e-5
    assert torch.equal(values, values.sort(descending=True).values)
    assert bool((values > 0).all())
    measured = measured_error(matrix, found)
    assert error == pytest.approx(measured, rel=1e-5, abs=1e-12)
    assert error <= 1.001 * best_error(matrix, rank) + FLOAT32
    return found


@pytest.mark.parametrize(
    ("shape", "spectrum", "rank"), spectra(SHAPES, SPECTRA, (5, 1, 20, 1000)), ids=str
)
def test_is_the_nearest_and_says_how_near(shape: tuple[int, int], spectrum: str, rank: int) -> None:
    found = check(with_spectrum(shape, spectrum), rank)
    if spectrum == "zero":
        assert len(found.values) == 0
        assert found.error == 0
    if spectrum == "low rank":
        assert len(found.values) == min(rank, min(shape) // 6)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_matrices_are_iterated_on_not_decomposed(shape: tuple[int, int]) -> None:
    for spectrum in SPECTRA:
        with listening() as notes:
            check(with_spectrum(shape, spectrum), 12)
        assert not notes


@pytest.mark.parametrize(
    "values",
    [
        torch.cat([torch.full((3,), 1.2), torch.ones(37), torch.full((280,), 1e-3)]),
        torch.cat([torch.tensor([1.05]), torch.full((319,), 0.99)]),
        torch.cat([torch.ones(8), torch.linspace(1e-5, 5e-6, 24), torch.full((288,), 1e-7)]),
        torch.cat([torch.ones(1), torch.linspace(1e-2, 2e-3, 39), torch.full((280,), 1e-4)]),
        torch.logspace(0, -20, 320),
    ],
    ids=["plateau", "one above many", "far below float32", "one far above", "steep"],
)
@pytest.mark.parametrize("rank", [2, 16, 24])
def test_spectra_on_which_an_iteration_may_stop_too_early(values: Tensor, rank: int) -> None:
    check(of_values(values), rank)


@pytest.mark.parametrize("size", [1e-20, 1e18])
@pytest.mark.parametrize("shape", [(40, 30), (300, 260)], ids=str)
def test_scale_changes_nothing_but_the_values(size: float, shape: tuple[int, int]) -> None:
    matrix = with_spectrum(shape, "power")
    power = 2.0 ** round(math.log2(size))
    plain, scaled = best_rank(matrix, 6), best_rank(matrix * power, 6)
    assert torch.equal(scaled.left, plain.left)
    assert torch.equal(scaled.values, plain.values * power)
    assert scaled.error == plain.error


def test_no_rank_is_no_approximation() -> None:
    found = best_rank(torch.ones(4, 3), 0)
    assert found.error == 1
    assert found.left.shape == (4, 0)


def test_a_float64_matrix_is_treated_in_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    parts = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (400, 300))
    left, right = parts
    found = best_rank(left @ right.T, 9)
    assert len(found.values) == 4
    assert found.error < 1e-13
    assert found.values.dtype == torch.float64


@pytest.mark.parametrize("spectrum", ["power", "thousand", "normal"])
@pytest.mark.parametrize("rank", [12, 60])
def test_a_start_that_misleads_does_no_harm(spectrum: str, rank: int) -> None:
    matrix = with_spectrum((500, 400), spectrum)
    right = torch.linalg.svd(matrix.double(), full_matrices=False)[2].float()
    best = best_error(matrix, rank)
    for start in (right[:rank].T, right[-rank:].T, right[:3].T):
        assert best_rank(matrix, rank, partial(torch.clone, start)).error <= 1.001 * best + FLOAT32


def test_equal_matrices_give_equal_bits() -> None:
    """On one thread, where every extraction runs: torch's products differ with their number."""
    matrix = with_spectrum((500, 400), "normal")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, again = best_rank(matrix, 8), best_rank(matrix.clone(), 8)
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
        torch.set_num_threads(2)
        other = best_rank(matrix, 8)
    finally:
        torch.set_num_threads(before)
    assert other.error == pytest.approx(first.error, rel=1e-6)
    assert torch.allclose(other.values, first.values, rtol=1e-4)


@pytest.mark.parametrize("spectrum", ["thousand", "power", "low rank", "normal"])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 1.0])
def test_the_rank_for_a_share_is_the_least_that_holds_it(spectrum: str, energy: float) -> None:
    matrix = with_spectrum((300, 330), spectrum)
    squares = torch.linalg.svdvals(matrix.double()).square()
    held = squares.cumsum(0) / squares.sum()
    least, most = (int((held < energy - slack).sum()) + 1 for slack in (2e-6, 1e-9))
    found = rank_by_energy(matrix, energy, 300)
    assert 1 - found.error**2 >= energy - 2e-6
    assert least <= len(found.values) <= most + max(1, most // 50)
    assert found.error == pytest.approx(measured_error(matrix, found), rel=1e-5)


def test_the_limit_holds_where_the_share_is_not_reached() -> None:
    matrix = with_spectrum((300, 330), "normal")
    assert len(rank_by_energy(matrix, 0.99, 7).values) == 7
    assert len(rank_by_energy(torch.zeros(5, 4), 0.99, 7).values) == 0


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    st.floats(0, 1e3),
    st.floats(0.01, 1),
)
def test_rank_for_energy_is_the_definition(values: list[float], rest: float, energy: float) -> None:
    values = sorted(values, reverse=True)
    whole = math.sqrt(math.fsum(v * v for v in values) + rest * rest)
    kept = rank_for_energy(torch.tensor(values, dtype=torch.float64), whole, energy)
    held = [math.fsum(v * v for v in values[:r]) / whole**2 for r in range(len(values) + 1)]
    assert kept == len(values) or held[kept] >= energy - 1.1e-6
    assert held[kept - 1] < energy


def test_no_share_of_nothing() -> None:
    assert rank_for_energy(torch.zeros(3), 0.0, 0.9) == 0


def voted_matrix(shape: tuple[int, int], rank: int) -> Tensor:
    """Entries of a product of this rank, those that are small set to zero: of full rank."""
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(n, rank, generator=generator) for n in shape)
    product = left @ right.T
    return torch.nn.functional.hardshrink(product, float(product.std()))


@pytest.mark.parametrize("shape", [(640, 300), (300, 640), (900, 900)], ids=str)
@pytest.mark.parametrize("rank", [12, 40, 130])
def test_merges_of_adapters_are_cut_as_near_as_a_decomposition_does(
    shape: tuple[int, int], rank: int
) -> None:
    matrix = voted_matrix(shape, 2 * rank)
    with listening() as notes:
        found = check(matrix, rank)
    assert found.error <= (1 + 1e-4) * best_error(matrix, rank)
    assert not notes


def test_rows_of_zeros_are_told_from_rows_of_small_entries() -> None:
    matrix = torch.zeros(4, 3)
    matrix[1, 2], matrix[3, 0] = 1e-40, 1.0
    assert zero_rows(matrix).tolist() == [True, False, True, False]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_relative_error_is_the_definition_at_any_scale(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(1500, 6, generator=generator) * size
    left, right = torch.randn(1500, 2, generator=generator) * size, torch.randn(2, 6)
    product = left.double() @ right.double()
    expected = float((matrix.double() - product).norm() / matrix.double().norm())
    assert relative_error(matrix, left, right) == pytest.approx(expected, rel=1e-9)
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 1), torch.zeros(1, 2)) == 0
    assert relative_error(torch.zeros(2, 2), torch.ones(2, 1), torch.ones(1, 2)) == math.inf
