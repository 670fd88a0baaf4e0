"""A model put together of others' tensors, each under a name of its own here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.core.dtypes import torch_dtype
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class Patch(NamedTuple):
    """A tensor of `model`, by its name there; without a model zeros, which are no vote."""

    model: Checkpoint | None
    spec: TensorSpec


class Patchwork:
    """`checkpoint` with the tensors of `patches` in place of its own, its ties as `ties` tell.

    What messages call it, its config and its files are those of `checkpoint`. `order` tells for the
    rows of some tensors the place that each has in the result.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        patches: Mapping[str, Patch],
        ties: Mapping[str, str],
        order: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._patches = patches
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.notes: tuple[str, ...] = checkpoint.notes
        self.ties: Mapping[str, str] = ties
        self.order = order
        specs = {name: TensorSpec(name, p.spec.shape, p.spec.dtype) for name, p in patches.items()}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.kinds: Mapping[str, Kind] = {
            name: kind
            for name, (model, spec) in patches.items()
            if model is not None and (kind := model.kinds.get(spec.name))
        }
        self.absent: Mapping[str, Sequence[range]] = {
            name: rows for name, patch in patches.items() if (rows := _lacking(patch))
        }

    def read(self, name: str) -> Tensor:
        """The whole tensor; zeros where it is nobody's."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        model, spec = self._patches[name]
        if model is not None:
            return model.read_part(spec.name, start, stop, out)
        if out is not None:
            return out.zero_()
        import torch

        return torch.zeros(stop - start, dtype=torch_dtype(spec.dtype))


def every_row(spec: TensorSpec) -> range:
    """All rows of a tensor, which are along its first dimension that is not 1."""
    return range(next((size for size in spec.shape if size != 1), 1))


def _lacking(patch: Patch) -> Sequence[range]:
    """The rows that are not there."""
    if patch.model is None:
        return [every_row(patch.spec)]
    holes: Mapping[str, Sequence[range]] = getattr(patch.model, "absent", {})
    return holes.get(patch.spec.name, ())
