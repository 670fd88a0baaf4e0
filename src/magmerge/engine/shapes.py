"""Shapes that differ on purpose: first layers with more input channels, heads of other classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from magmerge.checkpoints.experts import FullExpert
from magmerge.checkpoints.views import under_names
from magmerge.core.dtypes import torch_dtype
from magmerge.core.errors import shortened
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.types import Kind, TensorSpec
from magmerge.engine.job import Models

if TYPE_CHECKING:
    from torch import Tensor

FIRST = (
    "conv_in.weight",
    "input_blocks.0.0.weight",
    "x_embedder.weight",
    "x_embedder.proj.weight",
    "img_in.weight",
    "pos_embed.proj.weight",
    "patch_embed.proj.weight",
    "patch_embedding.weight",
)
"""How the layers of image models end that take an image's channels."""
CLASSES = frozenset(
    {"classifier", "classification_head", "score", "head", "heads", "fc", "_fc", "qa_outputs"}
)
"""Parts of names under which a model's head for some classes is."""


def told_apart(models: Models) -> Models:
    """The models with what differs in shape on purpose told as such.

    An expert whose first layer takes fewer channels than the layout's says nothing of the others:
    they stay as in the base. A head for another number of classes is no merge's business: the
    layout keeps its own, and those of the experts go beside the result.
    """
    experts = [_widened(expert, models.base) for expert in models.experts]
    return _with_heads(replace(models, experts=experts))


class _Widened:
    """An expert's checkpoint with the base's channels after its own in the layers `names`."""

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint, names: Sequence[str]) -> None:
        self._checkpoint, self._base, self._names = checkpoint, base, frozenset(names)
        self.source = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.ties: Mapping[str, str] = checkpoint.ties
        self.kinds: Mapping[str, Kind] = checkpoint.kinds
        told = f"{self.source} has fewer input channels than {base.source}: the others stay its own"
        self.notes: tuple[str, ...] = (*checkpoint.notes, f"{told} ({shortened(list(names))})")
        wide = {name: replace(base.specs[name], dtype=self._code(name)) for name in names}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType({**checkpoint.specs, **wide})

    def _code(self, name: str) -> str:
        """The format that holds both models' values."""
        own, other = self._checkpoint.specs[name].dtype, self._base.specs[name].dtype
        return own if own == other else "F32"

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own where it is a widened one."""
        if name not in self._names:
            return self._checkpoint.read(name)
        import torch

        own, wide = self._checkpoint.read(name), self._base.read(name)
        dtype = torch_dtype(self.specs[name].dtype)
        return torch.cat([own.to(dtype), wide[:, own.shape[1] :].to(dtype)], dim=1)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor."""
        if name not in self._names:
            return self._checkpoint.read_part(name, start, stop, out)
        part = self.read(name).reshape(-1)[start:stop]
        return part if out is None else out.copy_(part)


def _widened(expert: Expert, base: Checkpoint | None) -> Expert:
    """The expert with as many input channels as the base, where only those differ."""
    whole = expert.whole
    if whole is None or base is None or whole is base:
        return expert
    names = [
        name
        for name in whole.specs
        if name.endswith(FIRST)
        and name in base.specs
        and _fewer(whole.specs[name], base.specs[name])
    ]
    return FullExpert(expert.name, _Widened(whole, base, names)) if names else expert


def _fewer(own: TensorSpec, base: TensorSpec) -> bool:
    """Whether a layer takes fewer channels than the base's, and is the same otherwise."""
    if len(own.shape) != len(base.shape) or len(own.shape) < 2:
        return False
    return own.shape[1] < base.shape[1] and (
        (own.shape[0], *own.shape[2:]) == (base.shape[0], *base.shape[2:])
    )


def _with_heads(models: Models) -> Models:
    """The models less heads for other numbers of classes, which go beside the result."""
    layout = models.layout.specs
    roots = {
        root
        for expert in models.experts
        if expert.whole is not None
        for name, spec in expert.whole.specs.items()
        for root in [_root(name)]
        if root is not None and name in layout and spec.shape != layout[name].shape
    }
    if not roots:
        return models
    experts, texts, without = (
        [],
        dict(models.texts),
        frozenset(n for n in layout if _root(n) in roots),
    )
    for expert in models.experts:
        whole = expert.whole
        own = [n for n in (() if whole is None else whole.specs) if _root(n) in roots]
        if whole is None or not own:
            experts.append(expert)
            continue
        texts[_file(expert.name, texts)] = _stored(whole, own)
        kept = {name: name for name in whole.specs if name not in own}
        experts.append(FullExpert(expert.name, under_names(whole, kept)))
    told = (
        f"heads for other numbers of classes are not merged ({shortened(sorted(without))}): the "
        f"result has that of {models.layout.source}, and those of the experts are in the folder "
        "heads beside it"
    )
    notes = (*models.notes, told)
    return replace(models, experts=experts, texts=texts, unmerged=without, notes=notes)


def _root(name: str) -> str | None:
    """The head that a tensor is of, as the beginning of its name; None if it is of none."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts[:-1]) if part in CLASSES), None)
    return None if place is None else ".".join(parts[: place + 1])


def _file(name: str, taken: Collection[str]) -> str:
    """Where an expert's head goes: its name, with nothing in it that leads elsewhere."""
    stem, repeat = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "expert", 2
    file = f"heads/{stem}.safetensors"
    while file in taken:
        file, repeat = f"heads/{stem}-{repeat}.safetensors", repeat + 1
    return file


def _stored(checkpoint: Checkpoint, names: Sequence[str]) -> bytes:
    """These tensors as a safetensors file."""
    from safetensors.torch import save

    content: bytes = save({name: checkpoint.read(name) for name in names})
    return content
