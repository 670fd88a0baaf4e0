"""Exact thresholds of a layer, or of the whole model, found piece by piece and without a sort."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from magmerge.core.lazy import torch
from magmerge.core.parameters import UNIT, Threshold
from magmerge.core.pieces import RUN
from magmerge.core.traits import Brackets, Noted
from magmerge.linalg.selection import (
    Array,
    Entries,
    count_above,
    next_below,
    on_cpu,
    places_of,
    tallied,
    values_between,
)
from magmerge.linalg.tally import Search

Scope = Literal["layer", "model"]
SAMPLE, SHARE = 1 << 15, 1 << 7
"""The least number of entries in a sample, and one of how many is in it where there are many."""
MOST: Mapping[Scope, int] = {"layer": 1 << 18, "model": 1 << 20}
"""The greatest number of entries in a sample."""
CROWD: Mapping[Scope, int] = {"layer": 1 << 21, "model": 1 << 22}
"""Values in all tallies beyond which they are counted rather than kept."""
DEVIATIONS, SPARE = 6.0, 24.0
"""How far a bracket reaches from the sample's own threshold: standard deviations, and entries."""
GROUPS = 128
"""Parts of a sample, each of neighbours, by whose differences its deviation is told; there are more
where they would be longer than a run of neighbours can be, as layers differ too.
"""
KEEP_ALL, KEEP_NONE = Threshold(0.0, 0), Threshold(math.inf, 0)

View = Callable[[Any], Iterable[Any]]
"""From the experts' entries [K, entries] to T rows of magnitudes [entries] that are ranked."""


def magnitudes(deltas: Any) -> Iterator[Any]:
    """What most methods rank: the size of each entry, of one task vector after the other."""
    return (abs(delta).reshape(-1) for delta in deltas)


class ThresholdSurvey:
    """For each row of `view` and each of `ranks`: the threshold of its `rank` largest entries.

    They are those of a layer, or of all layers together (scope "model"), and there are `entries`.
    A sample gives a bracket; one sweep counts what is above it and keeps the values within, among
    which the threshold is then chosen. Equal entries are taken by layer name, then by place: where
    they run out in the middle of a piece, that piece is looked at again. Where a bracket fails or
    holds too much, a sweep counts bit patterns, and finds a bracket that holds the threshold for
    sure. Of several layers all magnitudes are compared as float32, as some may be stored so.
    """

    def __init__(
        self,
        entries: int,
        ranks: Sequence[int],
        view: View = magnitudes,
        *,
        scope: Scope = "layer",
        experts: int = 1,
    ) -> None:
        self.scope: Scope = scope
        # A bracket is told from a sample; a small layer needs none.
        share = max(SAMPLE, entries // SHARE)
        self.samples = 0 if entries <= UNIT else min(share, MOST[scope])
        self._entries, self._ranks, self._view, self._experts = entries, ranks, view, experts
        self._searches: dict[tuple[int, int], Search] = {}
        self._lock = threading.Lock()
        self._ended = False

    @property
    def passes(self) -> int:
        """1 while there is a sweep to be made."""
        return int(not self._ended)

    @property
    def takes_arrays(self) -> bool:
        """Where plain magnitudes are ranked: other views are of torch tensors."""
        return self._view is magnitudes

    @property
    def brackets(self) -> Brackets | None:
        """For each expert, of each rank, the least and the greatest magnitude that `note` is to be
        told of. None where the tensors themselves are to be observed.
        """
        if not self.takes_arrays or self._places():
            return None
        return [[search.bracket for search in self._row(expert)] for expert in range(self._experts)]

    def prepare(self, sample: Any) -> None:
        """Bracket each threshold so that that of all entries is almost surely within.

        `sample` is [K, samples]: a torch tensor or an array of numpy's.
        """
        for t, values in enumerate(self._view(sample)):
            row = on_cpu(self._compared(values))
            for r, rank in enumerate(self._ranks):
                self._searches[t, r] = Search(*_bracket(row, rank / self._entries))

    def wants(self, name: str, start: int, stop: int) -> bool:
        """All pieces at first, then those in which equal entries run out."""
        places = self._places()
        return not places or any(
            last.name == name and start < last.stop and last.start < stop
            for last in (search.last for search in places)
            if last is not None
        )

    def observe(self, name: str, start: int, tensors: Any) -> None:
        """Look at one piece [K, entries]: a torch tensor, or an array of numpy's."""
        placing = bool(self._places())
        for t, values in enumerate(self._view(tensors)):
            row, searches = self._compared(values), self._row(t)
            if placing:
                _place(searches, name, start, row)
                continue
            brackets = [search.bracket for search in searches]
            within = [values_between(row, low, high) for low, high in brackets]
            above = [0 if math.isinf(high) else count_above(row, high) for _, high in brackets]
            self.note(Noted(name, start, start + len(row), t, above, within))

    def note(self, noted: Noted) -> None:
        """Take note of one row's magnitudes in a piece."""
        searches = self._row(noted.row)
        for search, above, within in zip(searches, noted.above, noted.within, strict=True):
            if not search.sweeps:
                continue
            tally = tallied(within) if search.stage == "tally" else (within, None)
            with self._lock:
                search.add(*noted[:3], above, *tally)
        with self._lock:
            tallies = [s for s in self._searches.values() if s.stage == "tally" and s.low < s.high]
            if sum(search.tally.count for search in tallies) > CROWD[self.scope]:
                max(tallies, key=lambda search: search.tally.count).crowd()

    def conclude(self) -> None:
        """End one sweep."""
        for (_, r), search in self._searches.items():
            search.conclude(self._ranks[r], self._entries)
        self._ended = all(search.stage == "done" for search in self._searches.values())

    def keywords(self, name: str) -> Mapping[str, Any]:
        """One list of thresholds for each rank, with one for each row of the view."""
        rows = range(1 + max((t for t, _ in self._searches), default=-1))
        ranks = range(len(self._ranks))
        return {"thresholds": [[self._threshold(t, r, name) for t in rows] for r in ranks]}

    def _threshold(self, t: int, r: int, name: str) -> Threshold:
        search = self._searches[t, r]
        if self._ranks[r] <= 0:
            return KEEP_NONE
        if search.value == 0:
            return KEEP_ALL
        double = search.dtype == np.float64
        if search.last is None or name < search.last.name:
            below = next_below(search.value, np.float64 if double else np.float32)
            return Threshold(below, 0, not double)
        until = search.until if name == search.last.name else 0
        return Threshold(search.value, until, not double)

    def _row(self, t: int) -> list[Search]:
        """The searches of one row: of all values, where no sample gave a bracket."""
        with self._lock:
            return [self._searches.setdefault((t, r), Search()) for r in range(len(self._ranks))]

    def _places(self) -> list[Search]:
        """Those that only seek a place, where that is all that is left to do."""
        with self._lock:
            searches = list(self._searches.values())
        if any(search.sweeps for search in searches):
            return []
        return [search for search in searches if search.stage == "place"]

    def _compared(self, values: Entries) -> Entries:
        """The magnitudes in the format in which they are compared."""
        if self.scope == "layer":
            return values
        if isinstance(values, np.ndarray):
            return values.astype(np.float32, copy=False)
        return values.to(torch.float32)


def _place(searches: Sequence[Search], name: str, start: int, row: Entries) -> None:
    """Find in one row of a piece where equal entries end that are kept."""
    for search in searches:
        last = search.last
        if search.stage == "place" and last is not None and last[:2] == (name, start):
            search.until = start + int(places_of(row, search.value)[search.quota - 1]) + 1


def _bracket(row: Array, share: float) -> tuple[float, float]:
    """Two values between which the threshold of this share of a larger set almost surely lies."""
    size, ordered = len(row), np.sort(row)

    def ranked(rank: int) -> float:
        """The value of this rank, from 1, the largest."""
        return float(ordered[size - min(max(rank, 1), size)])

    middle = min(share, 1.0) * size
    margin = DEVIATIONS * _deviation(row, share, ranked(round(share * size))) + SPARE
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    return (ranked(last) if last <= size else 0.0, ranked(first) if first >= 1 else math.inf)


def _deviation(row: Array, share: float, middle: float) -> float:
    """The standard deviation of how many entries of a sample are among this share of all.

    Neighbours are alike, so it is more than that of independent entries: it is told from groups of
    neighbours, by how many entries of each are at least `middle`. Of these only those beside each
    other are compared, as what is sampled evenly from everywhere varies by no more than they do.
    """
    size = len(row)
    single = math.sqrt(size * share * max(0.0, 1 - share))
    length = min(size // GROUPS, RUN)
    if not length:
        return single
    groups = row[: size // length * length].reshape(-1, length)
    apart = np.diff(np.count_nonzero(groups >= middle, axis=1)).astype(np.float64)
    return max(single, math.sqrt(len(groups) * float(np.mean(apart * apart)) / 2))
