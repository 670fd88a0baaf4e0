"""Samples in two halves: every row once, and one row alone in both."""

from __future__ import annotations

import pytest
import torch

from magmerge.data.halves import halves, rows_of
from magmerge.data.rows import Inputs


def calls(*sizes: int) -> list[Inputs]:
    """Rows that are numbered through all calls, beside a mask and what is no tensor of rows."""
    found, first = [], 0
    for size in sizes:
        rows = torch.arange(first, first + size)
        found.append(
            Inputs((rows,), {"deep": {"mask": rows.unsqueeze(1)}, "scale": torch.ones(7)}, size)
        )
        first += size
    return found


@pytest.mark.parametrize("sizes", [(2,), (8,), (5,), (3, 3, 1), (1, 1, 1)])
def test_every_row_is_in_one_half_and_estimating_gets_the_odd_one(sizes: tuple[int, ...]) -> None:
    found = halves({"a": calls(*sizes)})
    numbers = [
        torch.cat([call.args[0] for call in half["a"]]).tolist()
        for half in (found.estimate, found.aside)
    ]
    total = sum(sizes)
    assert sorted(numbers[0] + numbers[1]) == list(range(total))
    assert len(numbers[0]) == (total + 1) // 2
    assert not found.shared
    for half in (found.estimate, found.aside):
        for call in half["a"]:
            assert call.rows == len(call.args[0]) == len(call.kwargs["deep"]["mask"])
            assert len(call.kwargs["scale"]) == 7


def test_one_row_is_in_both() -> None:
    found = halves({"a": calls(1), "b": calls(2)})
    assert found.shared == ("a",)
    assert found.estimate["a"] == found.aside["a"]
    assert [call.rows for call in found.aside["b"]] == [1]


def test_a_call_with_all_its_rows_is_the_same_object() -> None:
    (call,) = calls(3)
    assert rows_of(call, torch.arange(3)) is call
