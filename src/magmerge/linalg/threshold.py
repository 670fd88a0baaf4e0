"""Exact thresholds of a layer, or of the whole model, found piece by piece and without a sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import UNIT
from magmerge.linalg.radix import ModelThreshold, Search
from magmerge.linalg.selection import count_above, nth_largest, tally_between, weighted_rank

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


class LayerThreshold(ModelThreshold):
    """For each row of `view` and each of `ranks`: the threshold of its `rank` largest entries.

    A sample gives a bracket; one sweep counts what is above it and keeps the values within, among
    which the threshold is then chosen. Where entries equal to it run out in the middle of a piece,
    that piece is looked at again for the place. Where a bracket fails or holds too much, the bit
    patterns of all entries are counted instead, as those of a model are.
    """

    scope: Literal["layer", "model"] = "layer"

    def __init__(self, entries: int, ranks: Sequence[int], view: View = magnitudes) -> None:
        super().__init__(lambda _: self._ranks, view)
        self._entries, self._ranks, self._stage = entries, ranks, "bracket"
        self._brackets: list[list[tuple[float, float]]] = []
        # A bracket is told from a sample; a small layer needs none.
        self.samples = 0 if entries <= UNIT else min(max(SAMPLE, entries // SHARE), MOST)

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        """Bracket each threshold so that the whole layer's is almost surely within."""
        self._brackets = [
            [_bracket(row, rank / self._entries) for rank in self._ranks]
            for row in self._view(sample)
        ]

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Count what is above each bracket, keep the values within; then as for a model."""
        if self._stage != "bracket":
            super().observe(name, start, tensors)
            return
        for t, row in enumerate(self._view(tensors)):
            everything = [(0.0, math.inf)] * len(self._ranks)
            for r, (low, high) in enumerate(self._brackets[t] if self._brackets else everything):
                above = 0 if math.isinf(high) else count_above(row, high)
                values, counts = tally_between(row, low, high)
                with self._lock:
                    self._rows, self._dtype = max(self._rows, t + 1), row.dtype
                    if self._crowded:
                        continue
                    known = self._searches.setdefault((t, r), Search()).tally
                    known.add(name, start, start + len(row), above, values, counts)
                    # Not kept once it is known that there are too many.
                    if known.count > CROWD // len(tensors) and self._entries > UNIT:
                        self._crowded = True
                        self._searches.clear()

    def conclude(self) -> None:
        """Choose the thresholds among what was kept, or start to count everything."""
        if self._stage != "bracket":
            super().conclude()
        elif self._crowded or not all(map(self._choose, list(self._searches))):
            self._searches.clear()
            self._crowded, self._entries, self._dtype = False, 0, torch.float32
            self._stage = "upper"
        else:
            self._find_pieces()

    def _choose(self, key: tuple[int, int]) -> bool:
        """Find the value; False if the bracket does not hold it."""
        rank, search = self._ranks[key[1]], self._searches[key]
        if not 0 < rank < self._entries:
            del self._searches[key]
            return True
        values, counts = search.tally.columns()
        left = rank - sum(finding.above for finding in search.tally.findings)
        if not 0 < left <= int(counts.sum()):
            return False
        value = search.value = search.mark = weighted_rank(values, counts, left)
        quota = left - int(counts[values > value].sum())
        if value and quota < int(counts[values == value].sum()):
            search.quota = quota
        return True


def _bracket(row: Tensor, share: float) -> tuple[float, float]:
    """Two values between which the threshold of this share of a larger set almost surely lies."""
    size = len(row)
    middle = share * size
    margin = DEVIATIONS * math.sqrt(size * share * max(0.0, 1 - share)) + SPARE
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    ranks = [min(max(rank, 1), size) for rank in (first, last)]
    high, low = nth_largest(row, *ranks)
    return (low if last <= size else 0.0, high if first >= 1 else math.inf)
