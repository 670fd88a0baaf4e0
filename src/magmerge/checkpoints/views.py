"""A model seen with other names than its own, or with its rows in another order."""

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


class View:
    """What all views of `checkpoint` have of it. `names` maps those of its tensors that are seen
    as they are to their names here; ties and kinds of others are not known.
    """

    def __init__(
        self, checkpoint: Checkpoint, specs: Mapping[str, TensorSpec], names: Mapping[str, str]
    ) -> None:
        self._checkpoint = checkpoint
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.notes: tuple[str, ...] = checkpoint.notes
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(dict(specs))
        ties = {a: b for a, b in checkpoint.ties.items() if a in names and b in names}
        self.ties: Mapping[str, str] = {names[a]: names[b] for a, b in ties.items()}
        self.kinds: Mapping[str, Kind] = {
            names[name]: kind for name, kind in checkpoint.kinds.items() if name in names
        }

    def read(self, name: str) -> Tensor:
        """The tensor that is `name` here."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        raise NotImplementedError

    def _room(self, name: str, size: int, out: Tensor | None) -> Tensor:
        """`out`, or as much memory as the tensor's dtype needs for `size` entries."""
        import torch

        dtype = torch_dtype(self.specs[name].dtype)
        return torch.empty(size, dtype=dtype) if out is None else out


class RenamedCheckpoint(View):
    """A checkpoint under other names; `names` maps each new name to the stored one."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self._names = dict(names)
        stored = {new: checkpoint.specs[old] for new, old in names.items()}
        specs = {new: TensorSpec(new, spec.shape, spec.dtype) for new, spec in stored.items()}
        super().__init__(checkpoint, specs, {old: new for new, old in names.items()})

    def read(self, name: str) -> Tensor:
        """The tensor that is `name` here."""
        return self._checkpoint.read(self._names[name])

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the tensor that is `name` here."""
        return self._checkpoint.read_part(self._names[name], start, stop, out)


class GatheredCheckpoint(View):
    """`checkpoint` with the rows of some tensors gathered: row i of tensor t is its own row
    `rows[t][i]`, or is absent where that is ABSENT.

    An absent row reads as zeros, and `absent` tells it: no vote is not a zero.
    """

    def __init__(self, checkpoint: Checkpoint, rows: Mapping[str, Sequence[int]]) -> None:
        self._rows = rows
        specs = dict(checkpoint.specs)
        for name, order in rows.items():
            specs[name] = TensorSpec(name, (len(order), *specs[name].shape[1:]), specs[name].dtype)
        super().__init__(checkpoint, specs, {name: name for name in specs})
        self.absent: Mapping[str, Sequence[range]] = MappingProxyType(
            {name: list(_holes(order)) for name, order in rows.items() if ABSENT in order}
        )

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name not in self._rows:
            return self._checkpoint.read_part(name, start, stop, out)
        out = self._room(name, stop - start, out)
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
