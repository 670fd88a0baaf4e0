"""A whole fine-tuned model as an expert: its task vector is its difference from the base.

Whether two models are the same is told as early as their first difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from magmerge.checkpoints.quantisation import INTEGERS
from magmerge.core import dtypes
from magmerge.core.errors import Fault
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.pieces import cut
from magmerge.core.types import TensorSpec
from magmerge.linalg.device import moved

WHOLE = INTEGERS | {"BOOL"}


class FullExpert:
    """An expert that is a checkpoint of its own."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.whole: Checkpoint = checkpoint
        self.source: str = checkpoint.source
        self.files: tuple[Path, ...] = checkpoint.files
        self.notes: tuple[str, ...] = checkpoint.notes
        self.specs: Mapping[str, TensorSpec] = checkpoint.specs
        self.ties: Mapping[str, str] = checkpoint.ties
        self.untouched: frozenset[str] = frozenset()
        self.faults: list[Fault] = []
        self.absent: Mapping[str, Sequence[range]] = getattr(checkpoint, "absent", {})

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:
        """Whether it is the base, in the tensors `names`."""
        return base is not None and same_tensors(self.whole, base, names)

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same tensors."""
        return other.whole is not None and same_tensors(self.whole, other.whole, names)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The tensor's own entries, like those of `base`."""
        return moved(self.whole.read_part(name, start, start + base.numel()), base, out)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The same entries less the base's."""
        return self.weight(name, base, start, out).sub_(base)


def same_tensors(first: Checkpoint, second: Checkpoint, names: Collection[str]) -> bool:
    """Whether the tensors `names` are equal. Small ones first: most pairs differ there."""
    if any(name not in first.specs or name not in second.specs for name in names):
        return False
    if any(first.specs[name].shape != second.specs[name].shape for name in names):
        return False
    by_size = sorted(names, key=lambda name: (dtypes.nbytes(first.specs[name]), name))
    return bool(names) and all(same_tensor(first, second, name) for name in by_size)


def same_tensor(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    """Whether a tensor has the same values in both, looked at piece by piece."""

    codes = {first.specs[name].dtype, second.specs[name].dtype}
    wide = torch.float64
    if "C64" in codes:
        wide = torch.complex128
    elif codes <= WHOLE:
        wide = torch.int64
    return all(
        torch.equal(
            first.read_part(name, piece.start, piece.stop).to(wide),
            second.read_part(name, piece.start, piece.stop).to(wide),
        )
        for piece in cut(first.specs[name].shape, "other", "entries")
    )
