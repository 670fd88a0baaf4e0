from __future__ import annotations

import math

import pytest
import torch

from magmerge.linalg.row_norms import (
    mean_of,
    pairwise_cosines,
    row_norms,
    row_scale,
    squares,
)


def mean_pairwise_cosine(deltas: torch.Tensor) -> float | None:
    return mean_of(pairwise_cosines(deltas).tolist())


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e-42, 1e30])
def test_row_norms_neither_underflow_nor_overflow(size: float) -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * size
    expected = torch.linalg.vector_norm(rows.double(), dim=-1)
    assert torch.allclose(row_norms(rows).double(), expected, rtol=1e-6)


def test_row_scales_are_powers_of_two_that_divide_exactly() -> None:
    rows = torch.randn(50, 7) * torch.logspace(-37, 37, 50).unsqueeze(1)
    scale = row_scale(rows)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full((50,), 0.5))
    assert torch.equal(rows / scale.unsqueeze(1) * scale.unsqueeze(1), rows)
    assert row_scale(torch.zeros(2, 0)).tolist() == [1, 1]


def test_mean_cosine_equals_a_loop_over_pairs_and_rows() -> None:
    deltas = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    deltas[0, 2] = 0
    cosines = [
        torch.cosine_similarity(deltas[i, row], deltas[j, row], dim=0)
        for row in range(5)
        for i in range(4)
        for j in range(i)
        if deltas[i, row].any() and deltas[j, row].any()
    ]
    per_row = [torch.stack(cosines[:6]), torch.stack(cosines[6:12]), torch.stack(cosines[12:15])]
    per_row += [torch.stack(cosines[15:21]), torch.stack(cosines[21:])]
    expected = torch.stack([values.mean() for values in per_row]).mean()
    assert mean_pairwise_cosine(deltas) == pytest.approx(float(expected), abs=1e-6)


def test_mean_cosine_of_equal_opposite_and_missing_directions() -> None:
    one = torch.randn(1, 3, 8)
    assert mean_pairwise_cosine(one.expand(3, 3, 8)) == pytest.approx(1)
    assert mean_pairwise_cosine(torch.cat([one, -one])) == pytest.approx(-1)
    assert mean_pairwise_cosine(torch.cat([one, torch.zeros_like(one)])) is None


def test_sums_of_squares_are_taken_grain_by_grain() -> None:
    values = torch.arange(7.0).reshape(7, 1)
    assert squares(values, 3) == [5.0, 50.0, 36.0]
    assert squares(values, 100) == [91.0]


def test_a_mean_does_not_depend_on_the_order() -> None:
    values = [1e30, 1.0, -1e30, 3.0]
    assert mean_of(values) == mean_of(values[::-1]) == 1.0
    assert mean_of([]) is None
    assert math.isclose(mean_of([0.1] * 10), 0.1)
