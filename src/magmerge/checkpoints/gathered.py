"""A model whose tensors have their rows in another order, and lack some: a vocabulary's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from magmerge.core.dtypes import torch_dtype
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

ABSENT = -1
"""What stands for the row of a token that the model has not."""


class GatheredCheckpoint:
    """`checkpoint` with the rows of some tensors gathered: row i of tensor t is its own row
    `rows[t][i]`, or is absent where that is ABSENT.

    An absent row reads as zeros, and `absent` tells it: no vote is not a zero.
    """

    def __init__(self, checkpoint: Checkpoint, rows: Mapping[str, Sequence[int]]) -> None:
        self._checkpoint, self._rows = checkpoint, rows
        specs = dict(checkpoint.specs)
        for name, order in rows.items():
            specs[name] = TensorSpec(name, (len(order), *specs[name].shape[1:]), specs[name].dtype)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.absent: Mapping[str, Sequence[range]] = MappingProxyType(
            {name: list(_holes(order)) for name, order in rows.items() if ABSENT in order}
        )
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.ties: Mapping[str, str] = checkpoint.ties
        self.kinds: Mapping[str, Kind] = checkpoint.kinds
        self.notes: tuple[str, ...] = checkpoint.notes

    def read(self, name: str) -> Tensor:
        """The tensor `name`, its rows gathered."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        import torch

        if name not in self._rows:
            return self._checkpoint.read_part(name, start, stop, out)
        if out is None:
            out = torch.empty(stop - start, dtype=torch_dtype(self.specs[name].dtype))
        order, row = self._rows[name], math.prod(self.specs[name].shape[1:])
        for place in range(start // row, -(-stop // row)):
            first, last = max(start, place * row), min(stop, (place + 1) * row)
            part = out[first - start : last - start]
            if order[place] == ABSENT:
                part.zero_()
            else:
                shift = (order[place] - place) * row
                self._checkpoint.read_part(name, first + shift, last + shift, part)
        return out


def _holes(order: Sequence[int]) -> Iterator[range]:
    """The runs of rows that are absent."""
    start = None
    for place, row in enumerate([*order, 0]):
        if row == ABSENT and start is None:
            start = place
        elif row != ABSENT and start is not None:
            yield range(start, place)
            start = None
