from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magmerge.core.journal import listening
from magmerge.linalg import polar as by_polar
from magmerge.linalg.deflation import deflate
from magmerge.linalg.polar import polar
from magmerge.linalg.spectral import gram
from tests.linalg.matrices import distance, slow_polar, slow_triplets


def with_dominant(shape: tuple[int, int], count: int = 5) -> Tensor:
    """Noise, and a product of low rank far above it."""
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(side, count, generator=generator) for side in shape)
    return torch.randn(shape, generator=generator).addmm_(up, down.T, alpha=3.0)


def test_the_dominant_directions_and_the_rest_are_the_matrix() -> None:
    matrix = with_dominant((500, 300))
    apart = deflate(matrix, gram(matrix, torch.float32))
    assert apart is not None
    assert torch.allclose(apart.values, slow_triplets(matrix, 5)[1], rtol=1e-6)
    whole = (apart.left * apart.values) @ apart.right.T + apart.rest.double()
    assert distance(whole, matrix) < 1e-7
    assert float((apart.rest.double() @ apart.right).norm()) < 1e-4
    assert float((apart.residuals / apart.values.square()).max()) < 1e-6


def test_where_no_direction_stands_out_none_is_taken_apart() -> None:
    matrix = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    assert deflate(matrix, gram(matrix, torch.float32)) is None


@pytest.mark.parametrize("shape", [(700, 300), (300, 700)], ids=str)
def test_a_large_matrix_with_dominant_directions_needs_no_float64(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = with_dominant(shape)
    monkeypatch.setattr(by_polar, "LARGE", 300)
    with listening() as notes:
        found = polar(matrix)
    assert notes == []
    assert distance(found.factor, slow_polar(matrix)) < 1e-5
    assert found.nuclear == pytest.approx(float(slow_triplets(matrix, 300)[1].sum()), rel=1e-6)


def test_a_rest_that_counts_as_zero_is_left_to_more_careful_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_polar, "LARGE", 300)
    matrix = with_dominant((700, 300))
    matrix[:, 299] = matrix[:, 298]
    assert distance(polar(matrix).factor, slow_polar(matrix)) < 1e-4
