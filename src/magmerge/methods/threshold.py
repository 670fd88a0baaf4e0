"""The exact magnitude threshold of a whole task vector, found in two sweeps without a sort."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF = 16
BINS = 1 << HALF


class ModelThreshold:
    """For each expert, which entries are the `density` largest of the whole model.

    The bit pattern of a non-negative float32 orders as the float does. The first sweep counts the
    upper halves of all patterns and finds the one that holds the threshold; the second counts the
    lower halves below it, tensor by tensor. Equal entries are taken by tensor name, then by index.
    """

    passes = 2

    def __init__(self, experts: int, density: float) -> None:
        self._density = density
        self._lock = threading.Lock()
        self._entries = 0
        self._upper = torch.zeros(experts, BINS, dtype=torch.int64)
        self._high = [0] * experts
        self._left = [0] * experts
        self._lower: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in range(experts)]
        self._found: list[tuple[Tensor, dict[str, int]]] = []

    def observe(self, sweep: int, name: str, deltas: Float[Tensor, "K *shape"]) -> None:
        """Count one layer's magnitudes; counts add up to the same in any order."""
        for k, delta in enumerate(deltas):
            bits = _magnitude_bits(delta)
            if sweep == 0:
                counts = torch.bincount(bits >> HALF, minlength=BINS)
                with self._lock:
                    self._upper[k] += counts
                    self._entries += delta.numel() if k == 0 else 0
            else:
                inside = bits[(bits >> HALF) == self._high[k]] & (BINS - 1)
                values, counts = torch.unique(inside, return_counts=True)
                with self._lock:
                    self._lower[k][name] = (values, counts)

    def conclude(self, sweep: int) -> None:
        """Find the bin (first sweep) and the value (second sweep) of each expert's threshold."""
        if sweep == 0:
            wanted = math.ceil(self._density * self._entries)
            for k, counts in enumerate(self._upper):
                self._high[k], self._left[k] = _bin_of_rank(counts, wanted)
        else:
            self._found = [self._threshold(k) for k in range(len(self._lower))]

    def for_layer(self, name: str) -> Mapping[str, Any]:
        """Per expert, the threshold and how many of this tensor's entries that equal it stay."""
        return {"thresholds": [(value, quotas.get(name, 0)) for value, quotas in self._found]}

    def _threshold(self, k: int) -> tuple[Float[Tensor, ""], dict[str, int]]:
        counts = torch.zeros(BINS, dtype=torch.int64)
        for values, found in self._lower[k].values():
            counts.index_add_(0, values, found)
        low, left = _bin_of_rank(counts, self._left[k])
        pattern = torch.tensor((self._high[k] << HALF) | low, dtype=torch.int32)
        quotas = {}
        for name in sorted(self._lower[k]):
            values, found = self._lower[k][name]
            equal = int(found[values == low].sum())
            quotas[name] = min(equal, left)
            left -= quotas[name]
        return pattern.view(torch.float32), quotas


def _magnitude_bits(delta: Float[Tensor, "*shape"]) -> Int[Tensor, "entries"]:
    # Adding zero makes -0 and 0 one pattern.
    return (delta.to(torch.float32).abs() + 0.0).reshape(-1).view(torch.int32).to(torch.int64)


def _bin_of_rank(counts: Int[Tensor, "bins"], rank: int) -> tuple[int, int]:
    """The bin of the `rank`-th largest entry (from 1), and its rank within that bin."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, rank))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, rank - before
