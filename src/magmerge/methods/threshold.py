"""The exact magnitude threshold of a whole task vector, found in two sweeps without a sort."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg import (
    CHUNK,
    HALF,
    HALF_BINS,
    bin_of_rank,
    float_of_bits,
    kept_count,
    lower_halves,
    magnitude_bits,
)


class ModelThreshold:
    """For each expert, which entries are the `density` largest of the whole model.

    As `linalg.threshold_of`, over all tensors: the first sweep counts the upper halves of all bit
    patterns, the second the lower halves in the bin of the threshold, tensor by tensor. Equal
    entries are taken by tensor name, then by index.
    """

    passes = 2

    def __init__(self, experts: int, density: float) -> None:
        self._density = density
        self._lock = threading.Lock()
        self._entries = 0
        self._upper = torch.zeros(experts, HALF_BINS, dtype=torch.int64)
        self._high = [0] * experts
        self._left = [0] * experts
        self._lower: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in range(experts)]
        self._found: list[tuple[Tensor, dict[str, int]]] = []

    def observe(self, sweep: int, name: str, deltas: Float[Tensor, "K *shape"]) -> None:
        """Count one layer's magnitudes; counts add up to the same in any order."""
        for k, delta in enumerate(deltas):
            parts = delta.to(torch.float32).reshape(-1).split(CHUNK)
            counts = torch.zeros(HALF_BINS, dtype=torch.int64)
            for part in parts:
                bits = magnitude_bits(part).cpu()
                found = bits >> HALF if sweep == 0 else lower_halves(bits, self._high[k])
                counts += torch.bincount(found, minlength=HALF_BINS)
            with self._lock:
                if sweep == 0:
                    self._upper[k] += counts
                    self._entries += delta.numel() if k == 0 else 0
                else:
                    values = torch.nonzero(counts).reshape(-1)
                    self._lower[k][name] = (values, counts[values])

    def conclude(self, sweep: int) -> None:
        """Find the bin (first sweep) and the value (second sweep) of each expert's threshold."""
        if sweep == 0:
            wanted = kept_count(self._density, self._entries)
            for k, counts in enumerate(self._upper):
                self._high[k], self._left[k] = bin_of_rank(counts, wanted)
        else:
            self._found = [self._threshold(k) for k in range(len(self._lower))]

    def for_layer(self, name: str) -> Mapping[str, Any]:
        """Per expert, the threshold and how many of this tensor's entries that equal it stay."""
        return {"thresholds": [(value, quotas.get(name, 0)) for value, quotas in self._found]}

    def _threshold(self, k: int) -> tuple[Float[Tensor, ""], dict[str, int]]:
        counts = torch.zeros(HALF_BINS, dtype=torch.int64)
        for values, found in self._lower[k].values():
            counts.index_add_(0, values, found)
        low, left = bin_of_rank(counts, self._left[k])
        quotas = {}
        for name in sorted(self._lower[k]):
            values, found = self._lower[k][name]
            equal = int(found[values == low].sum())
            quotas[name] = min(equal, left)
            left -= quotas[name]
        return float_of_bits(self._high[k], low), quotas
