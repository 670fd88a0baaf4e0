from __future__ import annotations

import math

import pytest
import torch

from magmerge.linalg.row_norms import (
    BLOCK,
    LANES,
    mean_cosines,
    mean_of,
    row_dots,
    row_gram,
    row_norms,
    row_scale,
    squares,
)


def mean_pairwise_cosine(deltas: torch.Tensor) -> float | None:
    return mean_of(mean_cosines(row_gram(None, deltas)).tolist())


def dot_by_the_rule(left: list[float], right: list[float]) -> float:
    """The order of additions as the module's first lines have it, number by number."""
    total = [0.0] * LANES
    for first in range(0, len(left), BLOCK):
        lanes = [0.0] * LANES
        for place, (a, b) in enumerate(
            zip(left[first : first + BLOCK], right[first : first + BLOCK], strict=True)
        ):
            lanes[place % LANES] += a * b
        total = [sum_ + lane for sum_, lane in zip(total, lanes, strict=True)]
    while len(total) > 1:
        half = len(total) // 2
        total = [a + b for a, b in zip(total[:half], total[half:], strict=True)]
    return total[0]


@pytest.mark.parametrize("columns", [0, 1, 7, 8, 127, 128, 129, 1000, 5000])
def test_dots_are_added_up_in_one_order(columns: int) -> None:
    left, right = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(columns))
    pairs = zip(left.tolist(), right.tolist(), strict=True)
    assert row_dots(left, right).tolist() == [dot_by_the_rule(a, b) for a, b in pairs]


def test_one_long_row_is_added_up_in_the_same_order() -> None:
    row = torch.randn(1, (1 << 18) + 77, generator=torch.Generator().manual_seed(0))
    numbers = row[0].tolist()
    assert row_dots(row, row).tolist() == [dot_by_the_rule(numbers, numbers)]


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e30, 3e38])
def test_products_neither_vanish_nor_overflow(size: float) -> None:
    row = torch.full((1, 300), size)
    assert float(row_dots(row, row)) == pytest.approx(300 * float(row[0, 0]) ** 2, rel=1e-12)


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
