"""torch's distributed checkpoints, as FSDP saves them: a .metadata file that tells of each tensor
in which files its blocks are, each a zip file of torch's within one of the .distcp files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.open_files import Handles, read_into
from magmerge.checkpoints.pickles.containers import read_part
from magmerge.checkpoints.pickles.distributed_metadata import (
    TOGETHER,
    Block,
    Stored,
    read_metadata,
)
from magmerge.checkpoints.pickles.limits import DamagedError, RefusedError, spoken
from magmerge.checkpoints.pickles.records import TensorRecord
from magmerge.checkpoints.pickles.state import AVERAGED, MODEL, WRAPPERS
from magmerge.checkpoints.pickles.torch_pickle import check_within
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

TRAINING = ("optim", "lr_scheduler", "scheduler", "rng", "dataloader")
"""What the first parts of names begin with that a trainer needs to go on, and a model does not."""


class DistributedCheckpoint:
    """The tensors of a distributed checkpoint, put together of their blocks when they are read."""

    def __init__(
        self, tensors: Sequence[Stored], metadata: Path, source: str, folder: Path
    ) -> None:
        self.source = source
        self.folder: Path | None = folder
        self.files = (metadata, *sorted({b.file for t in tensors for b in t.blocks}))
        self.ties: Mapping[str, str] = MappingProxyType({})
        self.kinds: Mapping[str, Kind] = MappingProxyType({})
        self.notes: tuple[str, ...] = ()
        self.averaged = False
        specs = {t.path[-1]: TensorSpec(t.path[-1], t.spec.shape, t.spec.dtype) for t in tensors}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self._blocks = {tensor.path[-1]: tensor.blocks for tensor in tensors}
        self._records: dict[Block, TensorRecord] = {}
        self._handles = Handles()

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        import torch

        spec = self.specs[name]
        shape, dtype = spec.shape or (1,), dtypes.torch_dtype(spec.dtype)
        if out is None:
            out = torch.empty(stop - start, dtype=dtype)
        row = math.prod(shape[1:])
        if stop == start:
            return out
        first, last = start // row, -(-stop // row)
        whole = start == first * row and stop == last * row
        rows = out if whole else torch.empty((last - first) * row, dtype=dtype)
        table = rows.view(last - first, *shape[1:])
        for block in self._blocks[name]:
            offsets, sizes = block.offsets or (0,), block.sizes or (1,)
            top, bottom = max(first, offsets[0]), min(last, offsets[0] + sizes[0])
            if top >= bottom or 0 in sizes:
                continue
            width = math.prod(sizes[1:])
            begin = (top - offsets[0]) * width
            part = self._entries(name, block, begin, begin + (bottom - top) * width, dtype)
            inner = tuple(slice(o, o + n) for o, n in zip(offsets[1:], sizes[1:], strict=True))
            place = table[(slice(top - first, bottom - first), *inner)]
            place.copy_(part.view(bottom - top, *sizes[1:]))
        return out if whole else out.copy_(rows[start - first * row : stop - first * row])

    def _entries(self, name: str, block: Block, start: int, stop: int, dtype: Any) -> Tensor:
        """Entries [start, stop) of a flattened block."""
        import torch

        record = self._record(name, block, str(dtype).removeprefix("torch."))
        contiguous = tuple(math.prod(record.shape[i + 1 :]) for i in range(len(record.shape)))
        begin = record.storage.begin()
        assert begin is not None
        if record.strides == contiguous:
            part = torch.empty(stop - start, dtype=dtype)
            self._fill(name, block, part, begin + (record.offset + start) * dtype.itemsize)
            return part
        pairs = zip(record.shape, record.strides, strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in pairs)
        stored = torch.empty(extent, dtype=dtype)
        self._fill(name, block, stored, begin + record.offset * dtype.itemsize)
        return stored.as_strided(record.shape, record.strides).reshape(-1)[start:stop]

    def _fill(self, name: str, block: Block, out: Tensor, offset: int) -> None:
        import torch

        with self._handles.opened(block.file) as handle:
            read_into(handle, out.view(torch.uint8).numpy().data, block.file, offset, name)

    def _record(self, name: str, block: Block, dtype: str) -> TensorRecord:
        """What the zip file of a block says of it, which must be what .metadata says."""
        if block not in self._records:
            try:
                record = read_part(block.file, block.begin, block.length)
                if not isinstance(record, TensorRecord):
                    raise DamagedError("what is stored there is no plain tensor")
                if (record.shape, record.dtype) != (block.sizes, dtype):
                    shape = spoken(str(list(record.shape)))
                    raise DamagedError(f"what is stored there is {record.dtype} of shape {shape}")
                check_within(record)
                if record.storage.begin() is None:
                    raise DamagedError("its entries are not in the file")
            except RefusedError as error:
                raise CheckpointError(
                    f"refused: {error.problem}",
                    source=block.file,
                    tensor=name,
                    remedy=error.remedy,
                ) from error
            self._records[block] = record
        return self._records[block]


def open_distributed(
    metadata: Path, source: str, folder: Path | None, weights: str | None
) -> DistributedCheckpoint:
    """The model in a distributed checkpoint, without the rest of the training. `weights` "model"
    takes the raw ones where their average is beside them. CheckpointError where there is none.
    """
    try:
        tensors = read_metadata(metadata)
        groups = _groups(tensors)
        group = _model(groups, weights)
    except RefusedError as error:
        problem = f"refused: {error.problem}"
        raise CheckpointError(problem, source=metadata, remedy=error.remedy) from error
    checkpoint = DistributedCheckpoint(groups[group], metadata, source, folder or metadata.parent)
    averages = [".".join(path) for path in groups if _is_average(path)]
    checkpoint.averaged = _is_average(group)
    if averages and len(groups) > 1:
        taken = "averaged" if checkpoint.averaged else "raw"
        checkpoint.notes = (
            f"{source} holds averaged weights ({averages[0]}) beside the raw ones: the {taken} are "
            "taken",
        )
    return checkpoint


def _groups(tensors: Iterable[Stored]) -> dict[tuple[str, ...], list[Stored]]:
    """The tensors by what they lie in, without those of the training itself."""
    groups: dict[tuple[str, ...], list[Stored]] = {}
    for tensor in tensors:
        words = tensor.path if len(tensor.path) > 1 else tensor.path[0].split(".")[:1]
        if not any(word.lower().startswith(TRAINING) for word in words[:2]):
            groups.setdefault(tensor.path[:-1], []).append(tensor)
    for group in groups.values():
        if len({tensor.path for tensor in group}) != len(group):
            raise DamagedError("two of its tensors have one name")
    if not groups:
        raise RefusedError("it holds no model", "name the folder that holds one")
    return groups


def _is_average(path: Sequence[str]) -> bool:
    return any(AVERAGED.intersection(part.lower().split("_")) for part in path)


def _model(groups: Mapping[tuple[str, ...], Any], weights: str | None) -> tuple[str, ...]:
    """Which of the groups is the model: the average of its weights, where that is there."""
    averages = [path for path in groups if _is_average(path)]
    plain = [path for path in groups if path not in averages]
    if averages and weights != MODEL:
        return averages[0]
    named = [path for key in WRAPPERS for path in plain if path and path[-1] == key]
    if named or len(plain) == 1:
        return (named or plain)[0]
    if not plain:
        raise RefusedError(
            f"it holds averaged weights ({spoken('.'.join(averages[0]))}) alone, and the raw ones "
            "are asked for",
            "drop --weights model (weights=), or name the models that have them: "
            "--weights NAME=model",
        )
    listing = ", ".join(spoken(".".join(path)) for path in groups)
    raise RefusedError(f"which of these is the model is not known: {listing}", TOGETHER)
