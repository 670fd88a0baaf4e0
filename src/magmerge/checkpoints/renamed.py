"""A model whose tensors have other names than the base's: a wrapper's, or another family's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from magmerge.checkpoints import clip
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class RenamedCheckpoint:
    """A checkpoint under other names; `names` maps each new name to the stored one."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._names = dict(names)
        back = {stored: new for new, stored in names.items()}
        self.specs = MappingProxyType(
            {
                new: TensorSpec(new, checkpoint.specs[old].shape, checkpoint.specs[old].dtype)
                for new, old in names.items()
            }
        )
        self.ties = MappingProxyType({back[a]: back[b] for a, b in checkpoint.ties.items()})
        self.kinds: Mapping[str, Kind] = MappingProxyType(
            {back[name]: kind for name, kind in checkpoint.kinds.items() if name in back}
        )

    @property
    def source(self) -> str:
        """As the stored checkpoint's."""
        return self._checkpoint.source

    @property
    def folder(self) -> Path | None:
        """As the stored checkpoint's."""
        return self._checkpoint.folder

    @property
    def files(self) -> tuple[Path, ...]:
        """As the stored checkpoint's."""
        return self._checkpoint.files

    @property
    def notes(self) -> tuple[str, ...]:
        """As the stored checkpoint's."""
        return self._checkpoint.notes

    def read(self, name: str) -> Tensor:
        """The tensor that is `name` here."""
        return self._checkpoint.read(self._names[name])

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the tensor that is `name` here."""
        return self._checkpoint.read_part(self._names[name], start, stop, out)


def align(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` under the base's names, where one of them wraps the model once more.

    A classifier's bert.encoder... becomes the bare encoder's encoder..., or the other way round,
    if that matches more of the base's names than the names as they are. So does a CLIP model of
    another family of names. Other names stay.
    """
    best, matched = checkpoint, len(set(checkpoint.specs) & set(base.specs))
    for wrapper in sorted({name.partition(".")[0] for name in (*checkpoint.specs, *base.specs)}):
        inner = {name: _strip(name, wrapper, base) for name in checkpoint.specs}
        outer = {name: _wrap(name, wrapper, base) for name in checkpoint.specs}
        for renamed in (inner, outer):
            names = {new: old for old, new in renamed.items()}
            hits = len(set(names) & set(base.specs))
            if len(names) == len(renamed) and hits > matched:
                best, matched = RenamedCheckpoint(checkpoint, names), hits
    if matched < len(base.specs):
        other = clip.aligned(checkpoint, base)
        if other is not None and len(set(other.specs) & set(base.specs)) > matched:
            return other
    return best


def _strip(name: str, wrapper: str, base: Checkpoint) -> str:
    inner = name.removeprefix(f"{wrapper}.")
    return inner if inner in base.specs else name


def _wrap(name: str, wrapper: str, base: Checkpoint) -> str:
    outer = f"{wrapper}.{name}"
    return outer if outer in base.specs else name
