from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.parameters import UNIT
from magmerge.core.pieces import ALIGNED, cut, runs
from magmerge.engine.memory import coarsest

SHAPES = st.lists(st.integers(1, 70), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(
    shape=SHAPES,
    how=st.sampled_from(["entries", "rows", "whole"]),
    kind=st.sampled_from(["matrix", "transposed", "experts", "convolution"]),
    limit=st.sampled_from([1, UNIT, 3 * UNIT + 5]),
)
def test_pieces_cover_the_layer_in_order(
    shape: tuple[int, ...], how: str, kind: str, limit: int
) -> None:
    pieces = cut(shape, kind, how, limit)
    assert pieces[0].start == 0
    assert pieces[-1].stop == math.prod(shape)
    for piece, following in itertools.pairwise(pieces):
        assert piece.stop == following.start
    for piece in pieces:
        assert math.prod(piece.shape) == piece.stop - piece.start


@settings(deadline=None)
@given(row=st.integers(1, 5000), limit=st.integers(1, 1 << 20))
def test_a_piece_of_rows_is_whole_rows_and_aligned(row: int, limit: int) -> None:
    pieces = cut((700, row), "matrix", "rows", limit)
    assert all(piece.shape[1:] == (row,) for piece in pieces)
    assert all(piece.start % ALIGNED == 0 for piece in pieces)
    grains = {piece.grain for piece in pieces}
    assert len(grains) == 1
    assert all(piece.start % grain == 0 for piece in pieces for grain in grains)


def test_entries_are_cut_at_units() -> None:
    assert [p.start for p in cut((3, UNIT), "matrix", "entries", UNIT)] == [0, UNIT, 2 * UNIT]


def test_fused_experts_are_matrices_and_a_transposed_layer_keeps_its_rows() -> None:
    experts = cut((4, 8, 6), "experts", "whole")
    assert [(p.start, p.shape) for p in experts] == [(i * 48, (8, 6)) for i in range(4)]
    assert len(cut((900, 900), "transposed", "rows", UNIT)) == 1
    assert len(cut((900, 900), "transposed", "entries", UNIT)) > 1
    assert cut((0, 5), "matrix", "entries")[0].stop == 0


@pytest.mark.parametrize(
    ("cuts", "found"),
    [
        ((), "entries"),
        (("rows", "entries"), "rows"),
        (("rows", "whole", "entries"), "whole"),
    ],
)
def test_the_coarsest_cut_suits_all(cuts: tuple[str, ...], found: str) -> None:
    assert coarsest(*cuts) == found


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=8).filter(
        lambda sizes: sum(sizes) > 40_000
    ),
    share=st.integers(2, 500),
)
def test_runs_are_from_everywhere_and_apart(sizes: list[int], share: int) -> None:
    entries = max(1, sum(sizes) // share)
    spans = list(runs(sizes, entries))
    assert spans == list(runs(sizes, entries))
    assert 0.8 * entries - 128 <= sum(stop - start for _, start, stop in spans) <= entries + 128
    assert all(0 <= start < stop <= sizes[place] for place, start, stop in spans)
    assert spans == sorted(spans)
    # Each layer has its share of the runs.
    for place, size in enumerate(sizes):
        own = sum(1 for other, *_ in spans if other == place)
        assert abs(own - len(spans) * size / sum(sizes)) <= 2


def test_runs_do_not_meet_the_same_columns() -> None:
    columns = {start % 4096 // 512 for _, start, _ in runs([4096 * 4096], 1 << 17)}
    assert len(columns) == 8
