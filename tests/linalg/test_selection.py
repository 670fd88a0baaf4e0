from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.parameters import Threshold
from magmerge.linalg.selection import (
    bin_of_rank,
    count_above,
    kept_count,
    largest,
    next_below,
    nth_largest,
    places_of,
    values_between,
)

VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-40, 1e30]), min_size=1, max_size=30)


@settings(deadline=None)
@given(values=VALUES, rank=st.integers(1, 30), start=st.integers(0, 5))
def test_the_largest_are_those_of_a_stable_sort(values: list[float], rank: int, start: int) -> None:
    rank = min(rank, len(values))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:rank]
    last = order[-1]
    signed = torch.tensor([v if i % 2 else -v for i, v in enumerate(values)])
    value = float(signed[last].abs())
    found = largest(signed, Threshold(value, start + last + 1), start)
    wanted = [float(v) if i in order else 0.0 for i, v in enumerate(signed)]
    assert found.tolist() == wanted


def test_nothing_and_everything_are_thresholds_too() -> None:
    values = torch.tensor([1.0, -2.0, 0.0])
    assert largest(values, Threshold(float("inf"), 0)).tolist() == [0.0, 0.0, 0.0]
    whole = largest(values, Threshold(0.0, 0))
    assert whole.tolist() == values.tolist()
    assert whole.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_counts_values_and_places(dtype: Any, form: Any) -> None:
    values = form(np.array([0.1, 3.0, 0.5, 0.5, 2.0, 0.5], dtype=dtype))
    edge = float(dtype(0.1))
    assert count_above(values, edge) == 5
    assert count_above(values, next_below(edge, dtype)) == 6
    assert values_between(values, 0.5, 2.0).tolist() == [0.5, 0.5, 2.0, 0.5]
    assert places_of(values, 0.5).tolist() == [2, 3, 5]
    assert nth_largest(values, 1, 3, 6) == [3.0, 0.5, edge]


def test_a_rank_falls_into_the_bin_that_holds_it() -> None:
    counts = np.array([4, 0, 3, 2])
    assert [bin_of_rank(counts, rank) for rank in (1, 2, 3, 5, 6, 9)] == [3, 3, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("density", "entries", "kept"), [(0.07, 100, 7), (0.2, 5, 1), (0.2, 6, 2), (1.0, 9, 9)]
)
def test_counts_are_rounded_up_without_binary_fractions(
    density: float, entries: int, kept: int
) -> None:
    assert kept_count(density, entries) == kept
