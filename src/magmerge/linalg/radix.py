"""Exact thresholds by counting bit patterns: of a whole model, or of layers with few values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from magmerge.core.parameters import Threshold
from magmerge.linalg.selection import (
    HALF,
    HALF_BINS,
    bin_of_rank,
    count_equal,
    float_of_bits,
    lower_halves,
    magnitude_bits,
    next_below,
    places_of,
)

CROWD = 1 << 22
"""Values in all tallies beyond which only their total is kept."""

Key = tuple[int, int]
"""Which row of the view, and which of the ranks."""


def keep_all() -> Threshold:
    """The threshold that every entry is beyond."""
    return Threshold(0.0, 0)


def keep_none() -> Threshold:
    """The threshold that no entry is beyond."""
    return Threshold(math.inf, 0)


class Finding(NamedTuple):
    """One piece: where it is, how many of its entries are above the tally, and where that is."""

    name: str
    start: int
    stop: int
    above: int
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
        self._dtype = torch.float32

    def add(
        self,
        name: str,
        start: int,
        stop: int,
        above: int,
        values: Shaped[Tensor, "values"],
        counts: Int[Tensor, "values"],
    ) -> None:
        """Take note of the piece [start, stop) of the layer `name`."""
        end = self.count + len(values)
        self.findings.append(Finding(name, start, stop, above, self.count, end))
        self.count, self._dtype = end, values.dtype
        self._values += values.numpy().data
        self._counts += counts.to(torch.int32).numpy().data

    def columns(self) -> tuple[Shaped[Tensor, "values"], Int[Tensor, "values"]]:
        """All values, and how often each is where it was found."""
        if not self.count:
            return torch.empty(0), torch.empty(0, dtype=torch.int32)
        values = torch.frombuffer(self._values, dtype=self._dtype)
        return values, torch.frombuffer(self._counts, dtype=torch.int32)

    def last_of(self, value: float | int, quota: int) -> tuple[Finding, int]:
        """The piece in which the `quota`-th entry of this value is, and its number there.

        Pieces are taken by layer name, then by place.
        """
        values, counts = self.columns()
        equal = torch.where(values == value, counts, 0)
        for finding in sorted(self.findings):
            here = int(equal[finding.first : finding.last].sum())
            if quota <= here:
                return finding, quota
            quota -= here
        raise AssertionError("there are fewer such entries than are sought")

    def count_of(self, value: float) -> int:
        """How many entries have this value."""
        values, counts = self.columns()
        return int(counts[values == value].sum())


class ModelThreshold:
    """The thresholds of the largest entries of all layers together, by their float32 bit patterns.

    The first sweep counts the upper halves of all patterns, the second the lower halves in the bin
    of the threshold. Equal entries are taken by layer name, then by place: a look at the one piece
    in which they run out finds the last. Where there were too many different values to know that
    piece, one more sweep counts the equal entries. `ranks` gives, for the number of entries, how
    many are among the largest.
    """

    scope: Literal["model"] = "model"
    samples = 0

    def __init__(
        self,
        ranks: Callable[[int], Sequence[int]],
        view: Callable[[Tensor], Iterable[Tensor]],
    ) -> None:
        self._ranks_of = ranks
        self._view = view
        self._lock = threading.Lock()
        self._stage: Literal["upper", "lower", "equal", "place", "done"] = "upper"
        self._entries = 0
        self._ranks: Sequence[int] = ()
        self._upper: list[Tensor] = []
        self._bins: dict[Key, tuple[int, int]] = {}
        self._lower: dict[Key, Tensor] = {}
        self._tallies: dict[Key, ValueTally] = {}
        self._crowded = False
        self._values: dict[Key, float] = {}
        self._quotas: dict[Key, int] = {}
        self._last: dict[Key, tuple[Finding, int]] = {}
        self._until: dict[Key, int] = {}

    @property
    def passes(self) -> int:
        """At least how many sweeps are still to be made."""
        return ("done", "place", "equal", "lower", "upper").index(self._stage)

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        raise NotImplementedError("it takes no sample")

    def wants(self, name: str, start: int, stop: int) -> bool:
        """All pieces at first, then those in which equal entries run out."""
        return self._stage != "place" or any(
            finding.name == name and start < finding.stop and finding.start < stop
            for finding, _ in self._last.values()
        )

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Count one piece's magnitudes; counts add up to the same in any order."""
        for t, values in enumerate(self._view(tensors)):
            row = values.to(torch.float32)
            if self._stage == "upper":
                counts = torch.bincount(magnitude_bits(row) >> HALF, minlength=HALF_BINS)
                self._count_upper(t, counts.cpu(), len(row))
                continue
            for r in range(len(self._ranks)):
                key = (t, r)
                if self._stage == "lower" and key in self._bins:
                    self._count_lower(key, name, start, row)
                elif self._stage == "equal" and key in self._quotas:
                    counts = torch.tensor([count_equal(row, self._values[key])])
                    self._add(key, name, start, row, torch.zeros(1, dtype=torch.int32), counts)
                elif self._stage == "place" and key in self._last:
                    self._find_place(key, name, start, row)

    def conclude(self) -> None:
        """Find the bins, then the values, then where equal entries run out."""
        if self._stage == "upper":
            self._find_bins()
            self._stage = "lower" if self._bins else "done"
        elif self._stage == "lower":
            lows = {key: self._find_value(key) for key in self._bins}
            self._lower.clear()
            if self._crowded and self._quotas:
                self._crowded, self._stage = False, "equal"
            else:
                self._find_pieces(lows)
        elif self._stage == "equal":
            self._find_pieces(dict.fromkeys(self._quotas, 0))
        else:
            self._stage = "done"

    def found(self, name: str) -> Mapping[str, Any]:
        """One list of thresholds for each rank, with one for each row of the view."""
        rows, ranks = range(len(self._upper)), enumerate(self._ranks)
        return {
            "thresholds": [[self._threshold((t, r), rank, name) for t in rows] for r, rank in ranks]
        }

    def _threshold(self, key: Key, rank: int, name: str) -> Threshold:
        if rank <= 0:
            return keep_none()
        if rank >= self._entries or self._values[key] == 0:
            return keep_all()
        value, last = self._values[key], self._last.get(key)
        if last is None or name < last[0].name:
            return Threshold(next_below(value, torch.float32), 0, rounded=True)
        until = self._until[key] if name == last[0].name else 0
        return Threshold(value, until, rounded=True)

    def _count_upper(self, t: int, counts: Tensor, entries: int) -> None:
        with self._lock:
            while len(self._upper) <= t:
                self._upper.append(torch.zeros(HALF_BINS, dtype=torch.int64))
            self._upper[t] += counts
            self._entries += entries if t == 0 else 0

    def _find_bins(self) -> None:
        self._ranks = self._ranks_of(self._entries)
        for t, counts in enumerate(self._upper):
            for r, rank in enumerate(self._ranks):
                if 0 < rank < self._entries:
                    self._bins[t, r] = bin_of_rank(counts, rank)
                    self._lower[t, r] = torch.zeros(HALF_BINS, dtype=torch.int64)

    def _count_lower(self, key: Key, name: str, start: int, row: Tensor) -> None:
        halves = lower_halves(magnitude_bits(row), self._bins[key][0]).cpu()
        values, counts = torch.unique(halves, return_counts=True)
        with self._lock:
            self._lower[key].index_add_(0, values.long(), counts)
        self._add(key, name, start, row, values.to(torch.int32), counts)

    def _add(
        self, key: Key, name: str, start: int, row: Tensor, values: Tensor, counts: Tensor
    ) -> None:
        with self._lock:
            if self._crowded:
                return
            tally = self._tallies.setdefault(key, ValueTally())
            tally.add(name, start, start + len(row), 0, values, counts)
            if sum(other.count for other in self._tallies.values()) > CROWD:
                self._crowded = True
                self._tallies.clear()

    def _find_value(self, key: Key) -> int:
        """The threshold's lower half; how many equal entries are among the largest, if not all."""
        high, rank = self._bins[key]
        low, quota = bin_of_rank(self._lower[key], rank)
        self._values[key] = float_of_bits(high, low)
        if quota < int(self._lower[key][low]):
            self._quotas[key] = quota
        return low

    def _find_pieces(self, sought: Mapping[Key, int]) -> None:
        """The piece in which the last equal entry is that is among the largest."""
        for key, quota in self._quotas.items():
            self._last[key] = self._tallies[key].last_of(sought[key], quota)
        self._tallies.clear()
        self._stage = "place" if self._last else "done"

    def _find_place(self, key: Key, name: str, start: int, row: Tensor) -> None:
        finding, quota = self._last[key]
        if (finding.name, finding.start) == (name, start):
            place = int(places_of(row, self._values[key])[quota - 1])
            self._until[key] = start + place + 1
