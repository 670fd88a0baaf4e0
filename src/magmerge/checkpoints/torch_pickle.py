"""torch files (.bin, .pt, .pth): their tensors, and never anything that would run code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.pickles.containers import read
from magmerge.checkpoints.pickles.limits import EmptyError, RefusedError
from magmerge.checkpoints.pickles.rebuilders import is_data
from magmerge.checkpoints.pickles.state import collect
from magmerge.checkpoints.pickles.tensors import Realiser
from magmerge.core.errors import CheckpointError, EmptyCheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The tensors of one file, what it holds in words, and the classes that were passed over.

    `passed` counts how often the file names each class or function that no tensor came from. `note`
    is what a reader should know of it.
    """

    tensors: Mapping[str, Tensor]
    holds: str
    passed: Mapping[str, int]
    note: str | None = None


class TorchCheckpoint(MemoryCheckpoint):
    """The tensors of torch files. Those of zip and legacy files stay on the disk until they are
    read.
    """

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
        self.holds = ", ".join(dict.fromkeys(file.holds for file in opened.values()))
        self.passed: Mapping[str, int] = MappingProxyType(
            {name: count for file in opened.values() for name, count in file.passed.items()}
        )


def open_torch(files: Iterable[Path], source: str, folder: Path | None = None) -> TorchCheckpoint:
    """The tensors of torch files, mapped lazily where the file's format allows it.

    A file is a zip or legacy file of torch, or a plain pickle; it holds a state dictionary, a whole
    module, or either under a key like "model". CheckpointError for anything else.
    """
    return TorchCheckpoint({file: load_file(file) for file in files}, source, folder)


def load_file(file: Path) -> TorchFile:
    """One torch file; CheckpointError if it holds no model, or reading it would run code."""
    try:
        content = read(file)
        model = collect(content.held)
        realiser = Realiser()
        tensors = {name: realiser.tensor(record) for name, record in model.tensors.items()}
    except RefusedError as error:
        kind = EmptyCheckpointError if isinstance(error, EmptyError) else CheckpointError
        raise kind(f"refused: {error.problem}", source=file, remedy=error.remedy) from error
    passed = {
        name: count
        for name, count in content.names.items()
        if name not in model.classes and not is_data(name)
    }
    return TorchFile(tensors, model.holds, passed, model.note)
