"""torch files (.bin, .pt, .pth): their tensors, and never anything that would run code.

Tensors are views of a mapped file, or of bytes in a pickle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.pickles.containers import read
from magmerge.checkpoints.pickles.limits import DamagedError, EmptyError, RefusedError, spoken
from magmerge.checkpoints.pickles.rebuilders import is_data
from magmerge.checkpoints.pickles.records import WIDTHS, Storage, TensorRecord
from magmerge.checkpoints.pickles.state import collect
from magmerge.core.errors import CheckpointError, EmptyCheckpointError

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage

MOST_REPEATED = 1 << 22
"""Entries of a tensor that repeats the same bytes, as expand() makes them."""


class TorchFile(NamedTuple):
    """One file's tensors, what it holds in words, how often it names what no tensor came from
    (`passed`), what a reader should know of it, and whether the tensors are an average.
    """

    tensors: Mapping[str, Tensor]
    holds: str
    passed: Mapping[str, int]
    note: str | None = None
    averaged: bool = False


class TorchCheckpoint(MemoryCheckpoint):
    """The tensors of torch files, left on the disk until they are read where the format allows."""

    def __init__(self, opened: Mapping[Path, TorchFile], source: str, folder: Path | None) -> None:
        tensors: dict[str, Tensor] = {}
        for file, content in opened.items():
            for name, tensor in content.tensors.items():
                if name in tensors:
                    raise CheckpointError(
                        "it is also in another file of this checkpoint",
                        source=file,
                        tensor=name,
                        remedy="remove the file that does not belong to this checkpoint",
                    )
                tensors[name] = tensor
        notes = tuple(f"{file}: {own.note}" for file, own in opened.items() if own.note)
        super().__init__(tensors, source, folder=folder, files=tuple(opened), notes=notes)
        self.averaged = any(file.averaged for file in opened.values())
        self.holds = ", ".join(dict.fromkeys(file.holds for file in opened.values()))
        self.passed: Mapping[str, int] = MappingProxyType(
            {name: count for file in opened.values() for name, count in file.passed.items()}
        )


def open_torch(
    files: Iterable[Path],
    source: str,
    folder: Path | None = None,
    weights: str | None = None,
) -> TorchCheckpoint:
    """The tensors of torch files; each is a zip or legacy file of torch, or a plain pickle, and
    holds a state dictionary, a whole module, or either under a key like "model"; or
    CheckpointError. `weights` "model" takes raw weights where their average is beside them.
    """
    return TorchCheckpoint({file: load_file(file, weights) for file in files}, source, folder)


def load_file(file: Path, weights: str | None = None) -> TorchFile:
    """One torch file; CheckpointError if it holds no model, or reading it would run code."""
    try:
        held, names = read(file)
        model = collect(held, weights)
        realiser = _Realiser()
        tensors = {name: realiser.tensor(record) for name, record in model.tensors.items()}
    except RefusedError as error:
        kind = EmptyCheckpointError if isinstance(error, EmptyError) else CheckpointError
        raise kind(f"refused: {error.problem}", source=file, remedy=error.remedy) from error
    passed = {
        name: count
        for name, count in names.items()
        if name not in model.classes and not is_data(name)
    }
    return TorchFile(tensors, model.holds, passed, model.note, model.averaged)


class _Realiser:
    """Makes tensors; those of one storage share its memory, so tied ones stay tied."""

    def __init__(self) -> None:
        self._files: dict[Path, UntypedStorage] = {}
        self._bytes: dict[int, tuple[bytes, UntypedStorage]] = {}
        # Records and storages are equal to themselves only.
        self._copies: dict[Storage, UntypedStorage] = {}
        self._tensors: dict[TensorRecord, Tensor] = {}

    def tensor(self, record: TensorRecord) -> Tensor:
        """The tensor; DamagedError where it reaches out of its storage."""
        if record not in self._tensors:
            self._tensors[record] = self._view(record)
        return self._tensors[record]

    def _view(self, record: TensorRecord) -> Tensor:
        import torch

        check_within(record)
        dtype: torch.dtype = getattr(torch, record.dtype)
        storage = self._storage(record.storage, WIDTHS[record.dtype])
        empty = torch.empty(0, dtype=dtype)
        try:
            return empty.set_(storage, record.offset, record.shape, record.strides)
        except (RuntimeError, OverflowError, ValueError) as error:
            # torch multiplies the sizes of a tensor without entries too.
            raise DamagedError(f"a tensor cannot be made: {spoken(error)}") from error

    def _storage(self, storage: Storage, width: int) -> UntypedStorage:
        import torch

        start = storage.begin()
        if start is None:
            raise DamagedError("a tensor's entries are not in the file")
        if not storage.size:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        whole = self._home(storage.home)
        if start + storage.size > len(whole):
            raise DamagedError("a tensor's entries reach beyond the end of the file")
        if start % width:
            # Entries that do not begin at a multiple of their width are not read in place.
            start = storage.shift
            if start % width:
                raise DamagedError("a part of a storage begins within an entry")
            whole = self._copy(storage.root or storage)
        part: UntypedStorage = whole[start : start + storage.size]
        return part

    def _copy(self, root: Storage) -> UntypedStorage:
        """The bytes of a storage for all that are part of it: copied once, so that ties stay."""
        if root not in self._copies:
            assert root.start is not None
            part: UntypedStorage = self._home(root.home)[root.start : root.start + root.size]
            self._copies[root] = part.clone()  # type: ignore[no-untyped-call]
        return self._copies[root]

    def _home(self, home: Path | bytes) -> UntypedStorage:
        import torch

        if isinstance(home, Path):
            if home not in self._files:
                size = home.stat().st_size
                mapped: Any = torch.UntypedStorage.from_file(str(home), False, size)
                self._files[home] = mapped
            return self._files[home]
        if id(home) not in self._bytes:
            entries = torch.frombuffer(bytearray(home), dtype=torch.uint8)
            self._bytes[id(home)] = (home, entries.untyped_storage())
        return self._bytes[id(home)][1]


def check_within(record: TensorRecord) -> None:
    """DamagedError unless all entries are in the storage, and are not many more than it has."""
    if 0 in record.shape:
        return
    pairs = zip(record.shape, record.strides, strict=True)
    last = record.offset + sum((size - 1) * stride for size, stride in pairs)
    room = record.storage.size // WIDTHS[record.dtype]
    if last >= room:
        raise DamagedError(
            f"a tensor reaches up to entry {last:,} of a storage that has {room:,} entries"
        )
    entries = math.prod(record.shape)
    if entries > max(room, MOST_REPEATED):
        raise DamagedError(f"a tensor repeats {room:,} entries {entries:,} times")
