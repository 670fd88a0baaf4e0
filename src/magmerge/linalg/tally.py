"""One threshold on its way to be known: what is above a bracket, and which values are within."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from magmerge.linalg.selection import (
    Array,
    bin_of_rank,
    bits_of,
    float_of_bits,
    weighted_rank,
)

BINS = 16
"""Bits of the number of a bin."""
NOTHING = (math.inf, math.inf)
"""A bracket that holds no finite magnitude."""


class Finding(NamedTuple):
    """One piece, and where in the tally its values are."""

    name: str
    start: int
    stop: int
    first: int
    last: int


class ValueTally:
    """Values and how often each piece has them, end to end.

    In two growing blocks: many small ones, which outlive the pieces, would leave the memory of the
    pieces in splinters.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.count = 0
        self._values, self._counts = bytearray(), bytearray()
        self._dtype: Any = np.float32

    def add(self, name: str, start: int, stop: int, values: Array, counts: Array) -> None:
        """Take note of the piece [start, stop) of the layer `name`."""
        end = self.count + len(values)
        self.findings.append(Finding(name, start, stop, self.count, end))
        self.count, self._dtype = end, values.dtype
        self._values += values.data
        self._counts += counts.astype(np.int32).data

    def columns(self) -> tuple[Array, Array]:
        """All values, and how often each is where it was found."""
        if not self.count:
            return np.empty(0, dtype=self._dtype), np.empty(0, dtype=np.int32)
        return np.frombuffer(self._values, self._dtype), np.frombuffer(self._counts, np.int32)

    def last_of(self, value: float, quota: int) -> tuple[Finding, int]:
        """The piece in which the `quota`-th entry of this value is, and its number there.

        Pieces are taken by layer name, then by place.
        """
        values, counts = self.columns()
        equal = np.where(values == value, counts, 0)
        for finding in sorted(self.findings):
            here = int(equal[finding.first : finding.last].sum())
            if quota <= here:
                return finding, quota
            quota -= here
        raise AssertionError("there are fewer such entries than are sought")


@dataclass(slots=True)
class Search:
    """The search for one threshold, in sweeps.

    Each counts what is `above` the bracket [low, high]. In the stage "tally" the values within are
    kept, by piece, and the threshold is then one of them. Where they are too many, they are counted
    by `bins` of bit patterns, of which one is the next bracket; so they are (stage "count") where a
    bracket turns out not to hold the threshold. `quota` of the entries equal to `value` are among
    the largest (0: all). The last of them is in the piece `last`, which is looked at once more for
    its place (stage "place"): they end at `until`.
    """

    low: float = 0.0
    high: float = math.inf
    stage: Literal["tally", "count", "place", "done"] = "tally"
    above: int = 0
    tally: ValueTally = field(default_factory=ValueTally)
    bins: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    dtype: Any = np.float32
    value: float = 0.0
    quota: int = 0
    last: Finding | None = None
    until: int = 0

    @property
    def sweeps(self) -> bool:
        """Whether it has to see all pieces."""
        return self.stage in ("tally", "count")

    @property
    def bracket(self) -> tuple[float, float]:
        """Where the values are that the next sweep has to tell it."""
        return (self.low, self.high) if self.sweeps else NOTHING

    def add(
        self, name: str, start: int, stop: int, above: int, values: Array, counts: Array | None
    ) -> None:
        """Take note of one piece: how much is above the bracket, and the values within, each with
        how often it occurs (None: once).
        """
        self.above += above
        self.dtype = values.dtype
        if self.stage == "count":
            self._count(values, counts)
        elif self.stage == "tally":
            assert counts is not None
            self.tally.add(name, start, stop, values, counts)

    def crowd(self) -> None:
        """Count from here on, what was tallied too: there are too many values to keep."""
        self.stage = "count"
        self._count(*self.tally.columns())
        self.tally = ValueTally()

    def conclude(self, rank: int, entries: int) -> None:
        """End a sweep, in search of the value of this rank among so many entries."""
        if not self.sweeps:
            self.stage = "done" if self.until or not self.quota else self.stage
            return
        values, counts = self.tally.columns()
        left, within = (
            rank - self.above,
            int((counts if self.stage == "tally" else self.bins).sum()),
        )
        if not 0 < rank < entries:
            self.stage = "done"
        elif left > within and self.low == 0:
            # NaN is in no bracket; without it there are as many entries.
            self.stage = "done"
        elif not 0 < left <= within:
            self._look(*((0.0, self.low) if left > within else (self.high, math.inf)), "count")
        elif self.stage == "count":
            self._look(*self._bounds(bin_of_rank(self.bins, left)), "tally")
        else:
            self._choose(values, counts, left)
            self.tally = ValueTally()

    def _choose(self, values: Array, counts: Array, left: int) -> None:
        """The value, and the piece in which the last entry is that equals it and is kept."""
        value = self.value = weighted_rank(values, counts, left)
        quota = left - int(counts[values > value].sum())
        self.stage = "done"
        if value and quota < int(counts[values == value].sum()):
            self.last, self.quota = self.tally.last_of(value, quota)
            self.stage = "place"

    def _look(self, low: float, high: float, stage: Literal["tally", "count"]) -> None:
        """Make the next sweep between these bounds."""
        self.low, self.high, self.stage, self.above = low, high, stage, 0
        self.tally, self.bins = ValueTally(), np.zeros(0, dtype=np.int64)

    def _grid(self) -> tuple[int, int, int]:
        """The first and the last bit pattern of the bracket, and how many bits a bin leaves out."""
        first, last = bits_of(np.array([self.low, self.high], dtype=self.dtype)).tolist()
        return first, last, max(0, (last - first).bit_length() - BINS)

    def _count(self, values: Array, counts: Array | None) -> None:
        first, last, shift = self._grid()
        size = 1 + ((last - first) >> shift)
        added = np.bincount((bits_of(values) - first) >> shift, counts, size).astype(np.int64)
        self.bins = added if not len(self.bins) else self.bins + added

    def _bounds(self, place: int) -> tuple[float, float]:
        """The least and the greatest value of a bin."""
        first, last, shift = self._grid()
        low = first + (place << shift)
        high = min(low + (1 << shift) - 1, last)
        return float_of_bits(low, self.dtype), float_of_bits(high, self.dtype)
