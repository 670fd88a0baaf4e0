from __future__ import annotations

import pytest
import torch

from magmerge.linalg.spectral import gram, power_of_two, rowwise, summed
from tests.linalg.matrices import distance


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1), (2500, 7), (6, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_product_with_the_transpose(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = gram(matrix, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, found.T)
    expected = matrix.double().T @ matrix.double()
    assert distance(found, expected) < (1e-6 if dtype == torch.float32 else 1e-14)


def test_the_sum_forgets_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(5, 300, 300, generator=generator) * 10.0 ** torch.randn(
        5, 1, 1, generator=generator
    )
    assert torch.equal(summed(deltas), summed(deltas.flip(0)))
    assert torch.equal(summed(deltas), deltas.double().sum(0).float())


def test_products_by_rows_are_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2500, 4, generator=generator)
    other = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    assert torch.allclose(rowwise(matrix, other), (matrix.double() @ other).float(), rtol=1e-6)


def test_scales_are_powers_of_two() -> None:
    assert power_of_two(torch.tensor([0.3, -0.75])) == 1.0
    assert power_of_two(torch.zeros(3)) == 1.0
    assert power_of_two(torch.empty(0)) == 1.0
    assert power_of_two(torch.tensor([-(2.0**40)])) == 2.0**41
