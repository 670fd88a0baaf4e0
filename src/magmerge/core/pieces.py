"""Into which pieces a layer is cut, so that memory is bounded and the work stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from magmerge.core.parameters import UNIT
from magmerge.core.types import Cut, Kind, Piece

PIECE = 1 << 18
"""Entries of a piece: several float32 copies of it fit into a core's own cache."""
STRETCH = 1 << 22
"""Entries whose pieces one job treats in turn."""
ALIGNED = 64
"""Entries of which every piece holds a multiple, so that vector instructions see equal parts."""
RUNS, RUN = 128, 1024
"""The least number of runs in a sample, and the greatest number of entries in one."""
SHORT_RUN = 128
"""The same where runs cost little: the shorter they are, the more rows a sample is from, and rows
differ by much more than what is in one of them.
"""
GOLDEN = (math.sqrt(5) - 1) / 2
"""A share whose multiples, less their whole part, fill the line from 0 to 1 evenly."""


def cut(shape: tuple[int, ...], kind: Kind, how: Cut, limit: int = PIECE) -> tuple[Piece, ...]:
    """The pieces of a layer, of at most `limit` entries where its grain allows.

    The rows of a transposed matrix are its columns, so it is not cut for what works by rows. Fused
    experts, [experts, out, in], are one matrix after the other for what takes whole layers.
    """
    entries = math.prod(shape)
    if how == "rows" and (kind == "transposed" or len(shape) < 2):
        how = "whole"
    if how == "whole":
        if kind != "experts":
            return (Piece(0, entries, shape, UNIT),)
        size = math.prod(shape[1:])
        return tuple(Piece(i * size, (i + 1) * size, shape[1:], UNIT) for i in range(shape[0]))
    row = 1 if how == "entries" else math.prod(shape[1:])
    grain = _grain(row)
    length = max(1, limit // grain) * grain
    pieces = []
    for start in range(0, max(entries, 1), length):
        stop = min(start + length, entries)
        part = (stop - start,) if how == "entries" else ((stop - start) // row, *shape[1:])
        pieces.append(Piece(start, stop, part, grain))
    return tuple(pieces)


def stretches(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that one job treats in turn."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if not groups or piece.stop - groups[-1][0].start > STRETCH:
            groups.append([])
        groups[-1].append(piece)
    return groups


def runs(sizes: Sequence[int], entries: int, longest: int = RUN) -> Iterator[tuple[int, int, int]]:
    """A sample of about so many entries from everywhere in layers of these sizes, in proportion to
    them, and always the same: of each run of neighbours, at most `longest`, the layer's place, and
    its first and last entry + 1.
    """
    total, count = sum(sizes), max(RUNS, entries // longest)
    length, place, before = max(1, entries // count), 0, 0
    for run in range(count):
        # Not at equal distances: a layer's columns may be as far apart.
        spare = max(0, total // count - length)
        begin = total * run // count + int(run * GOLDEN % 1 * spare)
        while begin >= before + sizes[place]:
            before, place = before + sizes[place], place + 1
        first = max(0, min(begin - before, sizes[place] - length))
        yield place, first, min(first + length, sizes[place])


def strewn(order: Any, width: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The entries [start, stop) of a tensor whose rows, of `width` entries, have another order in
    the result: row i is the row `order[i]` there (an array of integers). Each stretch of them that
    stays together: its first entry there, and its first and last + 1, counted from `start`.
    """
    first, last = start // width, -(-stop // width)
    rows = order[first:last]
    breaks = (rows[1:] != rows[:-1] + 1).nonzero()[0] + 1
    for begin, end in pairwise([0, *breaks.tolist(), last - first]):
        source, until = max(start, (first + begin) * width), min(stop, (first + end) * width)
        place = (int(rows[begin]) - first - begin) * width + source
        yield place, source - start, until - start


def _grain(row: int) -> int:
    """The least number of entries that is whole rows, a multiple of ALIGNED, and about a unit."""
    step = row * (ALIGNED // math.gcd(row, ALIGNED))
    return step * max(1, UNIT // step)
