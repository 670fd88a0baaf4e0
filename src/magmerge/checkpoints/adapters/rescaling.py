"""What multiplies rows or columns of a base's weight: DoRA's magnitudes, and (IA)3's factors.

A factor needs whole rows, or all of a column: it is found once for a module, by tiles that do not
depend on which entries are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.factored import TILE
from magmerge.checkpoints.adapters.nouns import Adapter, Rescale
from magmerge.checkpoints.adapters.placement import Place, Placement
from magmerge.core.dtypes import torch_dtype
from magmerge.core.models import Checkpoint
from magmerge.core.pieces import PIECE

KEPT = 64
"""Modules whose factors stay in memory: one number a row or column."""
Change = Callable[[str, Tensor, int], Tensor]
"""What is added to a piece of a base's tensor, by name, piece and first entry."""


class Rescaling:
    """The factors of an adapter's modules at their `places` in `base`; `change` is what their
    factors add to the base before they are multiplied.
    """

    def __init__(
        self,
        adapter: Adapter,
        base: Checkpoint,
        places: Sequence[Place],
        change: Change,
    ) -> None:
        self._rescales, self._base, self._change = adapter.rescales, base, change
        self._places: dict[str, list[Place]] = {}
        for place in places:
            if place.module in adapter.rescales:
                self._places.setdefault(place.tensor, []).append(place)
        self.tensors = frozenset(self._places)
        self._factor = lru_cache(KEPT)(self._factor_of)

    def apply(self, name: str, base: Tensor, start: int, delta: Tensor) -> None:
        """Turn a contiguous piece of what is added into the task vector f (W + D) - W, in place."""
        shape = self._base.specs[name].shape
        width = math.prod(shape[1:])
        for place in self._places.get(name, ()):
            rows = _rows(place, shape)
            first = max(start, rows.start * width)
            stop = min(start + delta.numel(), rows.stop * width)
            for at in range(first, stop, PIECE):
                end = min(at + PIECE, stop)
                entries = torch.arange(at, end)
                factor = self._factor(place)[self._positions(place, shape, entries)]
                part = delta.view(-1)[at - start : end - start]
                own = base.reshape(-1)[at - start : end - start]
                # f D + (f - 1) W: no difference of numbers that are nearly equal.
                part.mul_(factor.to(part)).add_(own * (factor - 1).to(part))

    def _by_rows(self, place: Place) -> bool:
        """Whether a factor is of a row as the base stores it."""
        return (self._rescales[place.module].axis == "out") != place.turned

    def _positions(self, place: Place, shape: tuple[int, ...], entries: Tensor) -> Tensor:
        """The factor's place for each entry of the base's tensor."""
        width = math.prod(shape[1:])
        if self._by_rows(place):
            return entries // width - place.at
        return entries % width // math.prod(shape[2:])

    def _factor_of(self, place: Place) -> Tensor:
        """The factor of each row, or column, of the place, in float64; of zeros it is 0."""
        rescale, shape = self._rescales[place.module], self._base.specs[place.tensor].shape
        own = rescale.read().double().flatten()
        if rescale.axis == "out" and not place.turned:
            own = own[place.row : place.row + place.rows]
        if not rescale.normed:
            return own
        squares = torch.zeros(len(own), dtype=torch.float64)
        for row, tile in self._tiles(place, shape):
            if self._by_rows(place):
                squares[row : row + len(tile)] = tile.flatten(1).square().sum(dim=1)
            else:
                columns = tile.reshape(len(tile), shape[1], -1).square().sum(dim=2)
                squares += columns.sum(dim=0)
        norms = squares.sqrt()
        return torch.where(norms > 0, own / norms, 0.0)

    def _tiles(self, place: Place, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """Some rows at a time of W + D at the place, in float64, and the first of them."""
        name, width, rows = place.tensor, math.prod(shape[1:]), _rows(place, shape)
        wide = self._base.specs[name].dtype == "F64"
        for first in range(rows.start, rows.stop, TILE):
            stop = min(first + TILE, rows.stop)
            stored = self._base.read_part(name, first * width, stop * width)
            tile = stored.to(torch_dtype("F64" if wide else "F32")).reshape(-1, *shape[1:])
            change = self._change(name, tile, first * width)
            yield first - rows.start, tile.double() + change.double()


def _rows(place: Place, shape: tuple[int, ...]) -> range:
    """The rows of the base's tensor that a place is; of a turned one all."""
    return range(shape[0]) if place.turned else range(place.at, place.at + place.rows)


def places_of_factors(
    adapter: Adapter, base: Checkpoint, turned: frozenset[str], placement: Placement
) -> list[Place]:
    """Where (IA)3's factors are in the base: weights, and the biases of layers that they follow.

    A module that the base lacks has no place. `turned`: tensors that are stored as [in, out].
    """
    places = []
    for module, rescale in adapter.rescales.items():
        if rescale.normed:
            continue
        tensors = [placement.names.get(f"{module}.weight")]
        if rescale.axis == "out":
            tensors.append(placement.names.get(f"{module}.bias"))
        for name in tensors:
            if name is not None:
                shape = base.specs[name].shape
                sideways = name in turned and len(shape) == 2
                places.append(Place(module, 0, name, 0, (shape or (0,))[0], sideways))
    return places


def misfit(place: Place, rescale: Rescale, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has another number of rows, or columns, than there are factors."""
    along = 0 if (rescale.axis == "out") != place.turned else 1
    return len(shape) <= along or shape[along] != rescale.size
