"""A model with the rows of some tensors in another order, some of them absent or another's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from magmerge.core.dtypes import torch_dtype
from magmerge.core.models import Checkpoint, as_stored
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from magmerge.core.models import Bytes, Stored

ABSENT = -1
"""What stands for the row of a token that the model has not."""
GAP = 1 << 14
"""Bytes between two rows that are read rather than skipped: a call costs as much."""
SPAN = 1 << 22
"""Bytes that are read at once, at most, where rows are not in their stored order."""

Rows = NDArray[np.int64]


class Reader(Protocol):
    """What holds tensors: a checkpoint, or the tensors that an adapter replaces."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor's header."""
        ...

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor."""
        ...


class Loan(NamedTuple):
    """Rows at `places` that another model has as its `rows`; without a `reader` they are zeros."""

    places: Rows
    reader: Reader | None
    rows: Rows


class RowMap(NamedTuple):
    """For each row of a tensor the model's own row, or ABSENT; and those that others lend it."""

    own: Rows
    loans: tuple[Loan, ...] = ()

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Which rows the model has not, and nobody lends it."""
        lacking: NDArray[np.bool_] = self.own == ABSENT
        for loan in self.loans:
            lacking[loan.places] = False
        return lacking


class GatheredRows:
    """`checkpoint` with the tensors of `rows` gathered row by row.

    Rows are along the first dimension that is not 1. `absent` tells the rows that the model has
    not, which read as zeros: no vote is not a zero. `order`, where it is told, is for each row the
    place that it has in the result. `kinds` are those that shapes no longer tell.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: Mapping[str, RowMap],
        *,
        kinds: Mapping[str, Kind] = MappingProxyType({}),
        order: Mapping[str, Rows] = MappingProxyType({}),
        notes: Sequence[str] = (),
    ) -> None:
        self._checkpoint, self._rows = checkpoint, rows
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.notes: tuple[str, ...] = (*checkpoint.notes, *notes)
        self.ties: Mapping[str, str] = checkpoint.ties
        self.kinds: Mapping[str, Kind] = {**checkpoint.kinds, **kinds}
        self.order = order
        specs = dict(checkpoint.specs)
        self._widths = {name: row_width(specs[name]) for name in rows}
        for name, each in rows.items():
            specs[name] = with_rows(specs[name], len(each.own))
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        every = {name: list(runs(each.lacking)) for name, each in rows.items()}
        self.absent: Mapping[str, Sequence[range]] = {n: part for n, part in every.items() if part}

    def __getattr__(self, name: str) -> Any:
        # What a kind of checkpoint tells beside the protocol, such as what it left out.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._checkpoint, name)

    def read(self, name: str) -> Tensor:
        """The whole tensor, with absent rows as zeros."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name not in self._rows:
            return self._checkpoint.read_part(name, start, stop, out)
        import torch

        each, width = self._rows[name], self._widths[name]
        if out is None:
            out = torch.empty(stop - start, dtype=torch_dtype(self.specs[name].dtype))
        first, last = start // width, -(-stop // width)
        own = each.own[first:last]
        loans = [part for loan in each.loans if (part := _between(loan, first, last)) is not None]
        if len(own) and own[0] != ABSENT and not loans and bool((np.diff(own) == 1).all()):
            shift = (int(own[0]) - first) * width
            return self._checkpoint.read_part(name, start + shift, stop + shift, out)
        table = torch.zeros((last - first, width), dtype=out.dtype)
        here = np.flatnonzero(own != ABSENT)
        _gather(self._checkpoint, name, own[here], here, table)
        for places, reader, rows in loans:
            if reader is None:
                table[torch.from_numpy(places)] = 0
            else:
                _gather(reader, name, rows, places, table)
        return out.copy_(table.reshape(-1)[start - first * width : stop - first * width])

    def raw(self, name: str) -> bool:
        """Whether its stored bytes are a stored tensor's."""
        return name not in self._rows and as_stored(self._checkpoint, name) is not None

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        cast("Stored", self._checkpoint).read_bytes(name, start, stop, out)


def with_lent_rows(
    checkpoint: Checkpoint, name: str, lenders: Sequence[Checkpoint]
) -> GatheredRows:
    """A checkpoint with the rows of one tensor that it has not, each of the first of the `lenders`
    that has it: they have the same rows in the same order.
    """
    spec, left = checkpoint.specs[name], _absent_rows(checkpoint, name)
    own = np.where(left, ABSENT, np.arange(len(left)))
    loans = []
    for lender in lenders:
        if lender.specs[name].shape != spec.shape:
            continue
        places = np.flatnonzero(left & ~_absent_rows(lender, name))
        loans.append(Loan(places, lender, places))
        left[places] = False
    return GatheredRows(checkpoint, {name: RowMap(own, tuple(loans))})


def _absent_rows(checkpoint: Checkpoint, name: str) -> NDArray[np.bool_]:
    """Which rows of a tensor a checkpoint has not."""
    spec = checkpoint.specs[name]
    absent = np.zeros(spec.shape[row_axis(spec)], dtype=bool)
    holes: Mapping[str, Sequence[range]] = getattr(checkpoint, "absent", {})
    for rows in holes.get(name, ()):
        absent[rows.start : rows.stop] = True
    return absent


def row_axis(spec: TensorSpec) -> int:
    """The dimension of a tensor that its rows are along: the first that is not 1."""
    return next((axis for axis, size in enumerate(spec.shape) if size != 1), 0)


def row_width(spec: TensorSpec) -> int:
    """How many entries a row has."""
    return math.prod(spec.shape[row_axis(spec) + 1 :])


def with_rows(spec: TensorSpec, count: int) -> TensorSpec:
    """A tensor like this one, of so many rows."""
    axis = row_axis(spec)
    return TensorSpec(spec.name, (*spec.shape[:axis], count, *spec.shape[axis + 1 :]), spec.dtype)


def runs(mask: NDArray[np.bool_]) -> Iterator[range]:
    """The runs of places where a mask is true."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    for first, last in edges.reshape(-1, 2).tolist():
        yield range(first, last)


def _between(loan: Loan, first: int, last: int) -> Loan | None:
    """The part of a loan in the rows [first, last), counted from there."""
    here = (loan.places >= first) & (loan.places < last)
    return Loan(loan.places[here] - first, loan.reader, loan.rows[here]) if here.any() else None


def _gather(reader: Reader, name: str, rows: Rows, places: Rows, table: Tensor) -> None:
    """Put `rows` of a stored tensor to `places` of the table; near ones are read at once."""
    import torch

    if not len(rows):
        return
    spec, width = reader.specs[name], table.shape[1]
    size = width * torch_dtype(spec.dtype).itemsize
    order = np.argsort(rows, kind="stable")
    rows, places = rows[order], places[order]
    far = np.diff(rows) > 1 + GAP // size
    # No more than SPAN at once, whatever lies between.
    block = (rows - rows[0]) // max(1, SPAN // size)
    cuts = np.flatnonzero(far | (np.diff(block) > 0)) + 1
    for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
        low, high = int(rows[start]), int(rows[stop - 1]) + 1
        part = reader.read_part(name, low * width, high * width).reshape(-1, width)
        chosen = part[torch.from_numpy(rows[start:stop] - low)]
        table[torch.from_numpy(places[start:stop])] = chosen.to(table.dtype)
