"""Gathered rows, against indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.tokens import rows as module
from magmerge.checkpoints.tokens.rows import ABSENT, GatheredRows, Loan, RowMap
from magmerge.core.pieces import strewn
from tests.quick import examples

ROWS = st.lists(st.integers(-1, 9), min_size=1, max_size=30)


@pytest.mark.parametrize("span", [1, 64, 1 << 22])
@settings(max_examples=examples(100), deadline=None)
@given(own=ROWS, lent=st.lists(st.integers(0, 9)), shape=st.sampled_from([(10, 3), (10,), (1, 10)]),
       cut=st.tuples(st.integers(0, 100), st.integers(0, 100)))  # fmt: skip
def test_rows_are_read_as_indexing_has_them(
    span: int, own: list[int], lent: list[int], shape: tuple[int, ...], cut: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(len(own))
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    lent = lent[: len(own)]
    places = np.arange(len(own))[: len(lent)]
    loan = Loan(places, MemoryCheckpoint({"t": second.double()}), np.array(lent, dtype=np.int64))
    zero = Loan(places[:1], None, np.zeros(len(places[:1]), dtype=np.int64))
    rows = RowMap(np.array(own), (loan, zero))
    before, module.SPAN, module.GAP = module.SPAN, span, span
    try:
        view = GatheredRows(MemoryCheckpoint({"t": first}), {"t": rows})
        flat, other = first.reshape(10, -1), second.reshape(10, -1)
        wish = torch.stack([flat[row] if row >= 0 else torch.zeros_like(flat[0]) for row in own])
        wish[: len(lent)] = other[lent]
        wish[: min(1, len(lent))] = 0
        start, stop = sorted(edge % (wish.numel() + 1) for edge in cut)
        assert torch.equal(view.read_part("t", start, stop), wish.reshape(-1)[start:stop])
        assert torch.equal(view.read("t").reshape(len(own), -1), wish)
    finally:
        module.SPAN, module.GAP = before, 1 << 14
    holes = [place for part in view.absent.get("t", ()) for place in part]
    assert holes == [p for p, row in enumerate(own) if row == ABSENT and p >= len(lent)]


@settings(max_examples=examples(100), deadline=None)
@given(st.permutations(range(7)), st.integers(1, 3), st.integers(0, 21), st.integers(0, 21))
def test_strewn_parts_are_put_where_their_rows_are(
    order: list[int], width: int, start: int, stop: int
) -> None:
    start, stop = sorted(edge % (7 * width + 1) for edge in (start, stop))
    tensor = np.arange(7 * width)
    if start == stop:
        return
    wish, out = np.full(7 * width, -1), np.full(7 * width, -1)
    for place in range(start, stop):
        wish[order[place // width] * width + place % width] = tensor[place]
    for place, first, last in strewn(np.array(order), width, start, stop):
        out[place : place + last - first] = tensor[start:stop][first:last]
    assert (wish == out).all()
