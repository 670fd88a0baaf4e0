"""A checkpoint under another's names by the parts that both have: tensors are cut and put together
when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from magmerge.checkpoints.adapters.names.vocabulary import UNET
from magmerge.checkpoints.names import ldm
from magmerge.checkpoints.names.layouts import SUFFIXES, Layout, Slot, Slots, tables
from magmerge.checkpoints.names.rules import unwrapped
from magmerge.checkpoints.views import CheckpointView, Stretch, whole
from magmerge.core.components import DIFFUSION
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

BLOCK = "(?:block_sparse_moe|mlp|feed_forward)"
"""What the part of a layer is called that has experts."""
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


class StableDiffusion:
    """The U-Net of Stable Diffusion 1, 2 and XL."""

    kind = "a U-Net in its first authors' names and in diffusers'"
    before = (DIFFUSION, "unet.")

    def read(self, specs: Mapping[str, TensorSpec]) -> dict[str, Slots]:
        """The parts of each tensor, as `Layout` has it."""
        own: dict[str, Slots] = {}
        theirs: dict[str, Slots] = {}
        for name in specs:
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


class FusedExperts:
    """Mixtures of experts: a tensor for each expert's projection, or one for all in a block, gate
    and up below each other, as transformers 5 has them in memory.
    """

    kind = "mixtures of experts, fused or one by one"
    _one = re.compile(
        rf"(.+)\.{BLOCK}\.experts\.(\d{{1,4}})\.(gate_proj|up_proj|down_proj|w[123])\.weight"
    )
    _all = re.compile(rf"(.+)\.{BLOCK}\.experts\.(gate_up_proj|down_proj)")

    def read(self, specs: Mapping[str, TensorSpec]) -> dict[str, Slots]:
        """The parts of each tensor, as `Layout` has it; of both kinds at once."""
        slots: dict[str, Slots] = {}
        for name, spec in specs.items():
            bare = unwrapped(name)
            if match := self._one.fullmatch(bare):
                slots[name] = (
                    Slot(f"{match[1]}.{match[2]}.{PROJECTIONS.get(match[3], match[3])}"),
                )
            elif (match := self._all.fullmatch(bare)) and len(spec.shape) == 3:
                halves = ("gate_proj", "up_proj") if match[2] != "down_proj" else ("down_proj",)
                slots[name] = tuple(
                    Slot(f"{match[1]}.{number}.{half}")
                    for number in range(spec.shape[0])
                    for half in halves
                )
        return slots


class _Held(NamedTuple):
    """Entries of a stored tensor that are one part, and the part's shape and format."""

    stretch: Stretch
    shape: tuple[int, ...]
    dtype: str


def layouts() -> Sequence[Layout]:
    """All that are known."""
    return (*tables().values(), StableDiffusion(), FusedExperts())


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
        shares = sum(slot.share for slot in slots)
        # Of what is side by side each has some shares.
        stacked = len(spec.shape) == 3 and shares % max(spec.shape[0], 1) == 0
        leading = 2 if stacked and shares > spec.shape[0] else 1
        rows, inner = math.prod(spec.shape[:leading]), spec.shape[leading:]
        if rows % shares:
            continue
        row, start = math.prod(inner), 0
        for slot in slots:
            height = rows // shares * slot.share
            if slot.part in held:
                return {}
            stretch = Stretch(name, start * row, height * row)
            held[slot.part] = _Held(stretch, (height, *inner) if spec.shape else (), spec.dtype)
            start += height
    return held


def _joined(like: TensorSpec, parts: Sequence[_Held]) -> TensorSpec | None:
    """The tensor that these parts make; None where they do not go together.

    A linear layer is a convolution of 1 x 1: then the shape is that of `like`.
    """
    shapes = [_without_ones(part.shape) for part in parts]
    inner = shapes[0][1:]
    if any(shape[1:] != inner for shape in shapes) or len({part.dtype for part in parts}) > 1:
        return None
    shape = parts[0].shape
    if len(parts) > 1:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    own, its = _without_ones(shape), _without_ones(like.shape)
    # Of experts that are side by side the first dimension counts them.
    stacked = own[1:] == its[2:] and math.prod(own) == math.prod(its)
    if own == its or (stacked and len(parts) > 1):
        shape = like.shape
    return TensorSpec(like.name, shape, parts[0].dtype)


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
