"""A large layer's task vectors, of which one at a time is in memory"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

RUN = 1 << 18
"""Entries that are read at once."""

Read = Callable[[int | None, int, int], Tensor]
"""From an expert's place and the first and last + 1 of its entries to these, [1, entries]; of all
experts, [K, entries], where the place is None."""


class InTurn:
    """Task vectors [K, *shape] that are read when they are asked for, each into memory of its own.

    It has what the spectral methods use of a tensor: its sizes, its dtype, iteration over experts,
    and the exchange of two dimensions. Each iteration reads anew.
    """

    def __init__(self, read: Read, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._read, self._stored, self.dtype = read, shape, dtype
        self._axes: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self._stored[0]

    @property
    def ndim(self) -> int:
        """How many dimensions there are, that of the experts among them."""
        return len(self._stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """[K, *shape], as a tensor tells it."""
        sizes = list(self._stored)
        if self._axes is not None:
            first, second = self._axes
            sizes[first], sizes[second] = sizes[second], sizes[first]
        return tuple(sizes)

    def transpose(self, first: int, second: int) -> InTurn:
        """The same with two dimensions of each task vector exchanged."""
        turned = InTurn(self._read, self._stored, self.dtype)
        turned._axes = (first, second) if self._axes is None else None
        return turned

    def __iter__(self) -> Iterator[Tensor]:
        for place in range(len(self)):
            yield self._seen(self._whole(place, lambda run: run[0]))

    def by_runs(self, combine: Callable[[Tensor], Tensor]) -> Tensor:
        """What `combine` makes of each run [K, entries] of all task vectors, entry by entry, as one
        tensor [*shape].
        """
        return self._seen(self._whole(None, combine)).contiguous()

    def _whole(self, place: int | None, combine: Callable[[Tensor], Tensor]) -> Tensor:
        """One tensor, as it is stored, of runs that are read one after the other."""
        first = combine(self._read(place, 0, min(RUN, self._entries)))
        whole = first.new_empty(self._entries)
        whole[: len(first)] = first
        for start in range(RUN, self._entries, RUN):
            stop = min(start + RUN, self._entries)
            whole[start:stop] = combine(self._read(place, start, stop))
        return whole.reshape(self._stored[1:])

    @property
    def _entries(self) -> int:
        total = 1
        for size in self._stored[1:]:
            total *= size
        return total

    def _seen(self, stored: Tensor) -> Tensor:
        if self._axes is None:
            return stored
        first, second = self._axes
        return stored.transpose(first - 1, second - 1)
