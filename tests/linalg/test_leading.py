from __future__ import annotations

import pytest
import torch

from magmerge.core.journal import listening
from magmerge.linalg.leading import leading, leading_eigenvectors
from tests.linalg.matrices import SHAPES, SPECTRA, distance, slow_triplets, with_spectrum

# Half of equal singular values are no defined directions.
DEFINED = [name for name in SPECTRA if name not in ("orthogonal", "two levels")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spectrum", DEFINED)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_spans_and_product_are_those_of_the_decomposition(
    shape: tuple[int, int], spectrum: str, count: int
) -> None:
    matrix = with_spectrum(shape, spectrum)
    found = leading(matrix, count)
    left, values, right = slow_triplets(matrix, count)
    assert len(found.values) == len(values)
    assert torch.allclose(found.values.double(), values, rtol=1e-5, atol=0)
    for mine, expected in ((found.left, left), (found.right, right)):
        assert distance(mine.double() @ mine.double().T, expected @ expected.T) < 1e-4
    assert distance(found.left @ found.right.T, left @ right.T) < 1e-4


@pytest.mark.parametrize("spectrum", ["power", "low rank", "normal"])
def test_iteration_finds_what_the_eigenproblem_finds(spectrum: str) -> None:
    matrix = with_spectrum((500, 400), spectrum, seed=3).double()
    product = matrix.T @ matrix / float(matrix.norm()) ** 2
    found = leading_eigenvectors(product, 12)
    if found is None:
        assert spectrum == "normal"
        return
    right = slow_triplets(matrix, 12)[2]
    mine = found[1][:, :12]
    assert found[2] < 1e-5
    assert distance(mine @ mine.T, right @ right.T) < 1e-4


def test_equal_values_at_the_boundary_are_decided_by_the_decomposition_with_a_note() -> None:
    with listening() as notes:
        found = leading(torch.eye(8), 3)
    assert len(found.values) == 3
    assert len(notes) == 1
    assert distance(found.left @ found.right.T, found.left @ found.left.T) < 1e-6


def test_the_cut_may_be_a_share_of_something_larger() -> None:
    matrix = torch.diag(torch.tensor([1e-3, 1e-7]))
    assert len(leading(matrix, 2).values) == 2
    assert len(leading(matrix, 2, whole=1.0).values) == 1
