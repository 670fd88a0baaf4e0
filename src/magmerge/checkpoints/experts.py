"""Models by their roles: experts, whole or as adapters, and bases and merged models, always whole.

Whether two models are the same is told as early as their first difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from magmerge.checkpoints import adapters
from magmerge.checkpoints.kinds import INTEGERS
from magmerge.checkpoints.loader import Model, folds, in_parts, is_adapter, open_checkpoint
from magmerge.checkpoints.memory_checkpoint import from_expert, wrapped_layers
from magmerge.checkpoints.views import under_names
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, Fault
from magmerge.core.lazy import Tensor, load, torch
from magmerge.core.models import Checkpoint, Expert, as_stored
from magmerge.core.pieces import cut
from magmerge.core.types import TensorSpec
from magmerge.linalg.device import moved

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from magmerge.checkpoints.adapters.nouns import Adapter
    from magmerge.checkpoints.names.mapping import Renames
    from magmerge.core.models import Bytes, Stored

    Entries = NDArray[Any] | Tensor

BASE = "base"
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
        self.untouched: frozenset[str] = getattr(checkpoint, "untouched", frozenset())
        self.faults: list[Fault] = []
        self.absent: Mapping[str, Sequence[range]] = getattr(checkpoint, "absent", {})

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:
        """Whether it is the base, in the tensors `names`."""
        if not names and self.untouched:
            return True
        return base is not None and same_tensors(self.whole, base, names)

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same tensors."""
        return other.whole is not None and same_tensors(self.whole, other.whole, names)

    def raw(self, name: str) -> bool:
        """Whether the stored bytes of its own entries can be read."""
        return as_stored(self.whole, name) is not None

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        cast("Stored", self.whole).read_bytes(name, start, stop, out)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The tensor's own entries, like those of `base`."""
        return moved(self.whole.read_part(name, start, start + base.numel()), base, out)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The same entries less the base's."""
        return self.weight(name, base, start, out).sub_(base)


def open_expert(
    name: str,
    model: Model,
    base: Checkpoint | None,
    renames: Renames | None = None,
    weights: str | None = None,
) -> Expert:
    """Open one expert: a whole model under the names of `base`, or a LoRA adapter as task vectors
    on it. Its own names are mapped by `renames` first. `weights` as in `open_checkpoint`.
    """
    if isinstance(model, str) and base is not None and folds(model):
        # On its own base an adapter is one, also where it is written as a model with it.
        adapter = load("magmerge.checkpoints.named:adapter_on")(model, base)
        if adapter is not None:
            return _adapter_on(name, adapter, base, renames)
    split = isinstance(model, str | Path) and in_parts(model)
    if hasattr(model, "named_modules"):
        # One that PEFT has wrapped counts with what its adapter adds.
        model = from_expert(cast("nn.Module", model))
    checkpoint = None if split else open_checkpoint(model, weights)
    if checkpoint is not None and not is_adapter(checkpoint):
        if renames is not None and hasattr(checkpoint, "parts"):
            raise CheckpointError(
                "rename maps the names of one model, and this is a pipeline of several",
                source=checkpoint.source,
                remedy="merge its part alone: name its folder, and the base's",
            )
        if renames is not None:
            names = renames.names(name, checkpoint.source, checkpoint.specs)
            checkpoint = under_names(checkpoint, {new: old for old, new in names.items()})
        if base is None:
            return FullExpert(name, checkpoint)
        aligned = _in_parts(checkpoint, base) if hasattr(base, "parts") else None
        return FullExpert(name, aligned or align(checkpoint, base))
    if not isinstance(model, str | Path):
        raise CheckpointError(
            "it holds the factors of an adapter, and no file says how they are scaled",
            source=None if checkpoint is None else checkpoint.source,
            remedy="give the adapter's file, or its folder with adapter_config.json",
        )
    if base is None:
        raise CheckpointError(
            "an adapter is a change of a base model, and no base is given",
            source=model,
            remedy="name the base with --base (base=)",
        )
    return _adapter_on(name, adapters.open_adapter(model), base, renames)


def _adapter_on(
    name: str, adapter: Adapter, base: Checkpoint, renames: Renames | None
) -> adapters.AdapterExpert:
    """An adapter as an expert, its names mapped by `renames` first."""
    if renames is not None:
        adapter = adapter.under_names(partial(renames.names, name, adapter.source))
    return adapters.AdapterExpert(name, adapter, base)


def open_whole(role: str, model: Model, weights: str | None = None) -> Checkpoint:
    """Open a base or a merged model, which cannot be an adapter; of a wrapped base its inside.
    `weights` as in `open_checkpoint`.
    """
    module = cast("nn.Module", model) if hasattr(model, "named_modules") else None
    if role != BASE and module is not None and wrapped_layers(module):
        raise CheckpointError(
            f"PEFT has wrapped it, and the {role} must be a plain model",
            source=f"a {type(model).__name__} in memory",
            remedy="pass model.merge_and_unload()",
        )
    checkpoint = open_checkpoint(model, weights)
    if is_adapter(checkpoint):
        raise CheckpointError(
            f"it is a LoRA adapter, and the {role} must be a whole model",
            source=checkpoint.source,
            remedy="give the adapter as an expert, and the model that it was trained on as base",
        )
    return checkpoint


def align(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` under the base's names, where it has the same tensors under others.

    A classifier's bert.encoder... becomes the bare encoder's encoder..., or the other way round;
    wrappers of training, older names and other programs' names are seen through. Other names stay.
    """
    if base.specs.keys() <= checkpoint.specs.keys():
        return checkpoint
    view: Checkpoint = load("magmerge.checkpoints.names.alignment:aligned")(checkpoint, base)
    return view


def _in_parts(checkpoint: Checkpoint, base: Any) -> Checkpoint:
    """An expert of a pipeline, or of one part of it, as the base has its parts."""
    from magmerge.checkpoints import pipeline_folder

    parts = getattr(checkpoint, "parts", None)
    if parts is None:
        aligned = {part: align(checkpoint, model) for part, model in base.parts.items()}
        part = pipeline_folder.part_like(checkpoint, base.parts, aligned)
        parts = {part: aligned[part]}
    else:
        own = {part: model for part, model in base.parts.items() if part in parts}
        parts = {**parts, **{part: align(parts[part], model) for part, model in own.items()}}
    equal = [
        part
        for part, model in parts.items()
        if part in base.parts and set(model.specs) == set(base.parts[part].specs)
        if same_tensors(model, base.parts[part], model.specs)
    ]
    return pipeline_folder.on_pipeline(checkpoint, base, parts, equal)


def same_tensors(first: Checkpoint, second: Checkpoint, names: Collection[str]) -> bool:
    """Whether the tensors `names` are equal. Small ones first: most pairs differ there."""
    if any(name not in first.specs or name not in second.specs for name in names):
        return False
    if any(first.specs[name].shape != second.specs[name].shape for name in names):
        return False
    by_size = sorted(names, key=lambda name: (dtypes.nbytes(first.specs[name]), name))
    return bool(names) and all(same_tensor(first, second, name) for name in by_size)


def same_tensor(first: Checkpoint, second: Checkpoint, name: str, other: str = "") -> bool:
    """Whether a tensor has the same values in both, or as `other` in the second, piece by piece."""
    sides = ((first, name), (second, other or name))
    codes = {model.specs[own].dtype for model, own in sides}
    wide = "complex128" if "C64" in codes else "int64" if codes <= WHOLE else "float64"
    return all(
        _equal([entries(model, own, piece.start, piece.stop) for model, own in sides], wide)
        for piece in cut(first.specs[name].shape, "other", "entries")
    )


def _equal(sides: Sequence[Entries], wide: str) -> bool:
    """Whether both are the same, in a format that holds each exactly."""
    first, second = sides
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        dtype = getattr(torch, wide)
        return torch.equal(torch.as_tensor(first).to(dtype), torch.as_tensor(second).to(dtype))
    if first.dtype != second.dtype:
        first, second = first.astype(wide), second.astype(wide)
    return np.array_equal(first, second)


def entries(model: Checkpoint, name: str, start: int, stop: int) -> Entries:
    """Entries [start, stop) of a flattened tensor: numpy's where that has its numbers, and where
    the model can give them without torch; else torch's.
    """
    spec, stored = model.specs[name], as_stored(model, name)
    if stored is None or spec.dtype not in dtypes.NUMPY:
        return model.read_part(name, start, stop)
    data = np.empty((stop - start) * dtypes.width(spec.dtype), np.uint8)
    stored.read_bytes(name, start, stop, data)
    return dtypes.numpy_values(data, spec.dtype)
