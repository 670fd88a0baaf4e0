"""A whole fine-tuned model as an expert: its task vector is its difference from the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from magmerge.checkpoints.compare import same_tensors
from magmerge.core.errors import Fault
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class FullExpert:
    """An expert that is a checkpoint of its own."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.source = checkpoint.source
        self.untouched: frozenset[str] = frozenset()
        self.faults: list[Fault] = []
        self.absent: Mapping[str, Sequence[range]] = getattr(checkpoint, "absent", {})

    @property
    def whole(self) -> Checkpoint:
        """The checkpoint itself."""
        return self.checkpoint

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a digest is taken of."""
        return self.checkpoint.files

    @property
    def notes(self) -> tuple[str, ...]:
        """The checkpoint's."""
        return self.checkpoint.notes

    @property
    def ties(self) -> Mapping[str, str]:
        """The checkpoint's shared tensors."""
        return self.checkpoint.ties

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the checkpoint."""
        return self.checkpoint.specs

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:
        """Whether it is the base, in the tensors `names`."""
        return base is not None and same_tensors(self.checkpoint, base, names)

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same tensors."""
        return other.whole is not None and same_tensors(self.checkpoint, other.whole, names)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The tensor's own entries, like those of `base`."""
        from magmerge.linalg.device import moved

        return moved(self.checkpoint.read_part(name, start, start + base.numel()), base, out)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The same entries less the base's."""
        return self.weight(name, base, start, out).sub_(base)
