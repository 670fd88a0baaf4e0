"""Exact thresholds of a layer, or of the whole model, found piece by piece and without a sort."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import UNIT, Threshold
from magmerge.linalg.radix import Finding, ModelThreshold, ValueTally, keep_all, keep_none
from magmerge.linalg.selection import (
    count_above,
    next_below,
    nth_largest,
    places_of,
    tally_between,
    weighted_rank,
)

SAMPLE, SHARE = 1 << 15, 1 << 7
"""The least number of entries in a sample, and one of how many is in it in a large layer."""
MOST = 1 << 18
CROWD = 1 << 21
"""Candidates beyond which they are counted rather than kept."""
DEVIATIONS, SPARE = 8.0, 24.0
"""How far a bracket reaches from the sample's own threshold: standard deviations, and entries."""

View = Callable[[Tensor], Iterable[Tensor]]
"""From the experts' tensors [K, entries] to T tensors of magnitudes [entries] that are ranked."""


def magnitudes(deltas: Float[Tensor, "K *shape"]) -> Iterator[Float[Tensor, "entries"]]:
    """What most methods rank: the size of each entry, of one task vector after the other."""
    return (delta.abs().reshape(-1) for delta in deltas)


class LayerThreshold:
    """For each row of `view` and each of `ranks`: the threshold of its `rank` largest entries.

    A sample gives a bracket; one sweep counts what is above it and keeps the values within, among
    which the threshold is then chosen. Where entries equal to it run out in the middle of a piece,
    that piece is looked at again for the place. Where a bracket fails or holds too much, the bit
    patterns of all entries are counted instead.
    """

    scope: Literal["layer"] = "layer"

    def __init__(self, entries: int, ranks: Sequence[int], view: View = magnitudes) -> None:
        self._entries = entries
        self._ranks = ranks
        self._view = view
        self._lock = threading.Lock()
        self._brackets: list[list[tuple[float, float]]] = []
        self._tallies: dict[tuple[int, int], ValueTally] = {}
        self._crowded = False
        self._chosen = False
        self._found: dict[tuple[int, int], Threshold] = {}
        self._open: dict[tuple[int, int], tuple[Finding, int]] = {}
        self._fallback: ModelThreshold | None = None

    @property
    def samples(self) -> int:
        """How many entries a bracket is told from; a small layer needs none."""
        if self._entries <= UNIT:
            return 0
        return min(max(SAMPLE, self._entries // SHARE), MOST)

    @property
    def passes(self) -> int:
        """One sweep for the values, one over single pieces for places, if need be."""
        if self._fallback is not None:
            return self._fallback.passes
        return int(not self._chosen or bool(self._open))

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        """Bracket each threshold so that the whole layer's is almost surely within."""
        self._brackets = [
            [_bracket(row, rank / self._entries) for rank in self._ranks]
            for row in self._view(sample)
        ]

    def wants(self, name: str, start: int, stop: int) -> bool:
        """All pieces at first, then those in which a place is sought."""
        if self._fallback is not None:
            return self._fallback.wants(name, start, stop)
        return not self._chosen or any(
            start < finding.stop and finding.start < stop for finding, _ in self._open.values()
        )

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Count what is above each bracket, keep the values within; or find places."""
        if self._fallback is not None:
            self._fallback.observe(name, start, tensors)
            return
        for t, row in enumerate(self._view(tensors)):
            if self._chosen:
                self._find_places(t, start, row)
                continue
            everything = [(0.0, math.inf)] * len(self._ranks)
            for r, (low, high) in enumerate(self._brackets[t] if self._brackets else everything):
                above = 0 if math.isinf(high) else count_above(row, high)
                values, counts = tally_between(row, low, high)
                with self._lock:
                    if self._crowded:
                        continue
                    tally = self._tallies.setdefault((t, r), ValueTally())
                    tally.add(name, start, start + len(row), above, values, counts)
                    # Not kept once it is known that there are too many.
                    if tally.count > CROWD // len(tensors) and self._entries > UNIT:
                        self._crowded = True
                        self._tallies.clear()

    def conclude(self) -> None:
        """Choose the thresholds among what was kept, or start to count everything."""
        if self._fallback is not None:
            self._fallback.conclude()
        elif self._chosen:
            self._open.clear()
        elif self._crowded or not all(self._choose(*key) for key in self._tallies):
            self._fallback = ModelThreshold(lambda _: self._ranks, self._view)
        self._chosen = True
        self._tallies.clear()

    def found(self, name: str) -> Mapping[str, Any]:
        """One list of thresholds for each rank, with one for each row of the view."""
        if self._fallback is not None:
            return self._fallback.found(name)
        ranks, rows = range(len(self._ranks)), range(len(self._found) // len(self._ranks))
        return {"thresholds": [[self._found[t, r] for t in rows] for r in ranks]}

    def _choose(self, t: int, r: int) -> bool:
        """Set the threshold; False if the bracket does not hold it."""
        rank, tally = self._ranks[r], self._tallies[t, r]
        if rank <= 0 or rank >= self._entries:
            self._found[t, r] = keep_none() if rank <= 0 else keep_all()
            return True
        values, counts = tally.columns()
        left = rank - sum(finding.above for finding in tally.findings)
        if not 0 < left <= int(counts.sum()):
            return False
        value = weighted_rank(values, counts, left)
        quota = left - int(counts[values > value].sum())
        if quota == tally.count_of(value):
            below = next_below(value, values.dtype) if value else 0.0
            self._found[t, r] = Threshold(below, 0)
        else:
            finding, quota = tally.last_of(value, quota)
            self._open[t, r] = (finding, quota)
            self._found[t, r] = Threshold(value, finding.stop)
        return True

    def _find_places(self, t: int, start: int, row: Float[Tensor, "entries"]) -> None:
        for r in range(len(self._ranks)):
            finding, quota = self._open.get((t, r), (None, 0))
            if finding is not None and finding.start == start:
                value = self._found[t, r].value
                place = int(places_of(row, value)[quota - 1])
                self._found[t, r] = Threshold(value, start + place + 1)


def _bracket(row: Tensor, share: float) -> tuple[float, float]:
    """Two values between which the threshold of this share of a larger set almost surely lies."""
    size = len(row)
    middle = share * size
    margin = DEVIATIONS * math.sqrt(size * share * max(0.0, 1 - share)) + SPARE
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    ranks = [min(max(rank, 1), size) for rank in (first, last)]
    high, low = nth_largest(row, *ranks)
    return (low if last <= size else 0.0, high if first >= 1 else math.inf)
