"""A checkpoint under another's names by the parts that both have: tensors are cut and put together
when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from magmerge.checkpoints.adapters.names.vocabulary import UNET
from magmerge.checkpoints.names import ldm
from magmerge.checkpoints.names.layouts import SUFFIXES, Layout, Slot, Slots, tables
from magmerge.checkpoints.names.rules import unwrapped
from magmerge.checkpoints.views import CheckpointView, Stretch, whole
from magmerge.core.components import DIFFUSION
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec


class StableDiffusion:
    """The U-Net of Stable Diffusion 1, 2 and XL."""

    kind = "a U-Net in its first authors' names and in diffusers'"
    before = (DIFFUSION, "unet.")

    def read(self, names: Collection[str]) -> dict[str, Slots]:
        """The parts of each tensor, as `Layout` has it."""
        own: dict[str, Slots] = {}
        theirs: dict[str, Slots] = {}
        for name in names:
            bare = unwrapped(name)
            bare = bare.removeprefix(next((b for b in self.before if bare.startswith(b)), ""))
            module, _, last = bare.rpartition(".")
            if last not in SUFFIXES:
                continue
            new = ldm.to_diffusers(module)
            if new is not None:
                own[name] = (Slot(f"{new}.{last}"),)
            elif UNET.has(module):
                theirs[name] = (Slot(bare),)
        return max((theirs, own), key=len)


class _Held(NamedTuple):
    """Entries of a stored tensor that are one part, and the shape of the part's rows."""

    stretch: Stretch
    rows: int
    spec: TensorSpec


def layouts() -> Sequence[Layout]:
    """All that are known."""
    return (*tables().values(), StableDiffusion())


def put_together(checkpoint: Checkpoint, base: Checkpoint, layout: Layout) -> CheckpointView | None:
    """`checkpoint` with the tensors of `base` that have its parts, the rest under their own names.

    None where the layout is not that of both, or a part is there twice.
    """
    mine, its = layout.read(checkpoint.specs), layout.read(base.specs)
    held = _held(checkpoint, mine)
    if not its or not held:
        return None
    specs: dict[str, TensorSpec] = {}
    stretches: dict[str, Sequence[Stretch]] = {}
    used: set[str] = set()
    for name, slots in its.items():
        parts = [held[slot.part] for slot in slots if slot.part in held]
        spec = _joined(base.specs[name], parts) if len(parts) == len(slots) else None
        if spec is not None:
            specs[name], stretches[name] = spec, _merged([part.stretch for part in parts])
            used |= {slot.part for slot in slots}
    for name, spec in checkpoint.specs.items():
        if not all(slot.part in used for slot in mine.get(name, (Slot(""),))):
            if name in specs:
                return None
            specs[name], stretches[name] = spec, whole(spec)
    return CheckpointView(checkpoint, specs, stretches)


def _held(checkpoint: Checkpoint, read: Mapping[str, Slots]) -> dict[str, _Held]:
    """Each part with where it is; nothing where two tensors have the same part."""
    held: dict[str, _Held] = {}
    for name, slots in read.items():
        spec = checkpoint.specs[name]
        rows, shares = (spec.shape or (1,))[0], sum(slot.share for slot in slots)
        if rows % shares:
            continue
        row, start = math.prod(spec.shape) // max(rows, 1), 0
        for slot in slots:
            height = rows // shares * slot.share
            if slot.part in held:
                return {}
            held[slot.part] = _Held(Stretch(name, start * row, height * row), height, spec)
            start += height
    return held


def _joined(like: TensorSpec, parts: Sequence[_Held]) -> TensorSpec | None:
    """The tensor that these parts make; None where they do not go together.

    A linear layer is a convolution of 1 x 1: then the shape is that of `like`.
    """
    first = parts[0].spec
    if any(p.spec.shape[1:] != first.shape[1:] or p.spec.dtype != first.dtype for p in parts):
        return None
    shape = (sum(part.rows for part in parts), *first.shape[1:]) if first.shape else ()
    if _without_ones(shape) == _without_ones(like.shape):
        shape = like.shape
    return TensorSpec(like.name, shape, first.dtype)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _merged(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The same entries, those that follow each other in one tensor as one stretch."""
    merged: list[Stretch] = []
    for stretch in stretches:
        last = merged[-1] if merged else None
        if last and last.name == stretch.name and last.start + last.size == stretch.start:
            merged[-1] = last._replace(size=last.size + stretch.size)
        else:
            merged.append(stretch)
    return merged
