"""Exact thresholds by counting bit patterns: of a whole model, or of layers with few values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from magmerge.core.lazy import Float, Int, Shaped, Tensor, torch
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
    tally,
)

CROWD = 1 << 22
"""Values in all tallies beyond which only their total is kept."""
KEEP_ALL, KEEP_NONE = Threshold(0.0, 0), Threshold(math.inf, 0)


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


@dataclass(slots=True)
class Search:
    """One threshold on its way to be known, of one row of the view and one of the ranks.

    `rank` is that among the entries whose upper half is `high`, and `lower` counts their lower
    halves. `tally` has the values that are near, and `mark` stands for `value` in it. `quota` of
    the entries equal to `value` are among the largest (0: all); the last of them is in the piece
    `last`, and they end at `until`.
    """

    rank: int = 0
    high: int = 0
    lower: Tensor = field(default_factory=lambda: torch.zeros(HALF_BINS, dtype=torch.int64))
    tally: ValueTally = field(default_factory=ValueTally)
    value: float = 0.0
    mark: float | int = 0
    quota: int = 0
    last: Finding | None = None
    until: int = 0

    def choose(self) -> None:
        """The value, once the lower halves are counted."""
        low, quota = bin_of_rank(self.lower, self.rank)
        self.value, self.mark = float_of_bits(self.high, low), low
        if self.value and quota < int(self.lower[low]):
            self.quota = quota


class ModelThreshold:
    """The thresholds of the largest entries of all layers together, by their float32 bit patterns.

    The first sweep counts the upper halves of all patterns, the second the lower halves in the bin
    of the threshold. Equal entries are taken by layer name, then by place: a look at the one piece
    in which they run out finds the last. Where there were too many different values to know that
    piece, one more sweep counts the equal entries. `ranks` gives, for the number of entries, how
    many are among the largest.
    """

    scope: Literal["layer", "model"] = "model"
    samples = 0

    def __init__(
        self,
        ranks: Callable[[int], Sequence[int]],
        view: Callable[[Tensor], Iterable[Tensor]],
    ) -> None:
        self._ranks_of, self._view = ranks, view
        self._lock = threading.Lock()
        self._stage: Literal["bracket", "upper", "lower", "equal", "place", "done"] = "upper"
        self._dtype = torch.float32
        self._entries, self._rows = 0, 0
        self._ranks: Sequence[int] = ()
        self._upper: dict[int, Tensor] = {}
        self._searches: dict[tuple[int, int], Search] = {}
        self._crowded = False

    @property
    def passes(self) -> int:
        """1 while there is a sweep to be made."""
        return int(self._stage != "done")

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        raise NotImplementedError("it takes no sample")

    def wants(self, name: str, start: int, stop: int) -> bool:
        """All pieces at first, then those in which equal entries run out."""
        lasts = [search.last for search in self._searches.values() if search.last is not None]
        return self._stage != "place" or any(
            last.name == name and start < last.stop and last.start < stop for last in lasts
        )

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Count one piece's magnitudes; counts add up to the same in any order."""
        for t, values in enumerate(self._view(tensors)):
            row = values.to(self._dtype)
            if self._stage == "upper":
                self._count_upper(t, row)
            for r in range(len(self._ranks)):
                search = self._searches.get((t, r))
                if search is not None:
                    self._look(search, name, start, row)

    def conclude(self) -> None:
        """Find the bins, then the values, then where equal entries run out."""
        if self._stage == "upper":
            self._find_bins()
        elif self._stage == "lower":
            for search in self._searches.values():
                search.choose()
            if self._crowded and any(search.quota for search in self._searches.values()):
                self._crowded, self._stage = False, "equal"
                for search in self._searches.values():
                    search.mark = 0
            else:
                self._find_pieces()
        elif self._stage == "equal":
            self._find_pieces()
        else:
            self._stage = "done"

    def keywords(self, name: str) -> Mapping[str, Any]:
        """One list of thresholds for each rank, with one for each row of the view."""
        ranks, rows = range(len(self._ranks)), range(self._rows)
        return {"thresholds": [[self._threshold((t, r), name) for t in rows] for r in ranks]}

    def _threshold(self, key: tuple[int, int], name: str) -> Threshold:
        search = self._searches.get(key)
        if self._ranks[key[1]] <= 0:
            return KEEP_NONE
        if search is None or search.value == 0:
            return KEEP_ALL
        rounded = self._dtype == torch.float32
        if search.last is None or name < search.last.name:
            return Threshold(next_below(search.value, self._dtype), 0, rounded)
        return Threshold(search.value, search.until if name == search.last.name else 0, rounded)

    def _count_upper(self, t: int, row: Tensor) -> None:
        counts = torch.bincount(magnitude_bits(row) >> HALF, minlength=HALF_BINS).cpu()
        with self._lock:
            self._rows = max(self._rows, t + 1)
            self._upper[t] = self._upper[t] + counts if t in self._upper else counts
            self._entries += len(row) if t == 0 else 0

    def _find_bins(self) -> None:
        self._ranks = self._ranks_of(self._entries)
        for t, counts in self._upper.items():
            for r, rank in enumerate(self._ranks):
                if 0 < rank < self._entries:
                    high, within = bin_of_rank(counts, rank)
                    self._searches[t, r] = Search(within, high)
        self._stage = "lower" if self._searches else "done"

    def _look(self, search: Search, name: str, start: int, row: Tensor) -> None:
        """What the sweep that is being made looks for in one row of a piece."""
        if self._stage == "lower":
            values, counts = tally(lower_halves(magnitude_bits(row), search.high))
            with self._lock:
                search.lower.index_add_(0, values.long(), counts)
            self._keep(search, name, start, row, values, counts)
        elif self._stage == "equal" and search.quota:
            counts = torch.tensor([count_equal(row, search.value)])
            self._keep(search, name, start, row, torch.zeros(1, dtype=torch.int32), counts)
        elif self._stage == "place" and search.last and search.last[:2] == (name, start):
            search.until = start + int(places_of(row, search.value)[search.quota - 1]) + 1

    def _keep(
        self, search: Search, name: str, start: int, row: Tensor, values: Tensor, counts: Tensor
    ) -> None:
        with self._lock:
            if self._crowded:
                return
            search.tally.add(name, start, start + len(row), 0, values, counts)
            if sum(other.tally.count for other in self._searches.values()) > CROWD:
                self._crowded = True
                for other in self._searches.values():
                    other.tally = ValueTally()

    def _find_pieces(self) -> None:
        """The pieces in which the last equal entries are that are among the largest."""
        for search in self._searches.values():
            if search.quota:
                search.last, search.quota = search.tally.last_of(search.mark, search.quota)
            search.tally, search.lower = ValueTally(), torch.empty(0)
        sought = any(search.quota for search in self._searches.values())
        self._stage = "place" if sought else "done"
