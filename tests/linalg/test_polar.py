from __future__ import annotations

import pytest
import torch

from magmerge.core.journal import listening
from magmerge.linalg.polar import polar
from magmerge.linalg.spectral import RANK_CUT
from tests.linalg.matrices import (
    SHAPES,
    SPECTRA,
    distance,
    slow_polar,
    slow_triplets,
    with_spectrum,
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_polar_factor_and_the_nuclear_norm(
    shape: tuple[int, int], spectrum: str, dtype: torch.dtype
) -> None:
    matrix = with_spectrum(shape, spectrum).to(dtype)
    found = polar(matrix)
    assert found.factor.dtype == dtype
    assert distance(found.factor, slow_polar(matrix)) < 1e-4
    values = slow_triplets(matrix, min(shape))[1]
    assert found.nuclear == pytest.approx(float(values.sum()), rel=1e-5)


def test_directions_below_the_cut_are_left_out() -> None:
    values = torch.tensor([1.0, 0.5, 4 * RANK_CUT, RANK_CUT / 4])
    found = polar(torch.diag(values)).factor
    assert torch.allclose(found, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])), atol=1e-4)


def test_a_value_at_the_cut_is_decided_by_the_decomposition_with_a_note() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, 1.001 * RANK_CUT]))
    with listening() as notes:
        found = polar(matrix).factor
    assert torch.allclose(found, torch.eye(3), atol=1e-5)
    assert len(notes) == 1
    assert notes[0].startswith("singular value decomposition used: ")


@pytest.mark.parametrize("spectrum", ["normal", "million", "low rank"])
def test_ordinary_matrices_need_no_decomposition(spectrum: str) -> None:
    with listening() as notes:
        polar(with_spectrum((60, 40), spectrum))
    assert notes == []


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**60])
def test_scale_changes_nothing_but_the_norm(factor: float) -> None:
    matrix = with_spectrum((30, 20), "normal")
    once, scaled = polar(matrix), polar(matrix * factor)
    assert torch.equal(once.factor, scaled.factor)
    assert scaled.nuclear == pytest.approx(once.nuclear * factor)


def test_sensitivity_is_that_of_random_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(90, 60, generator=generator, dtype=torch.float64)
    change = 1e-6 * torch.randn(90, 60, generator=generator, dtype=torch.float64)
    found = polar(matrix)
    moved = distance(polar(matrix + change).factor, found.factor)
    assert moved == pytest.approx(found.sensitivity * float(change.norm() / matrix.norm()), rel=0.3)
