"""A CLIP checkpoint under another family's names: each tensor renamed, cut, put together or turned
when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from magmerge.checkpoints.clip.families import (
    BIAS,
    BUFFERS,
    FAMILIES,
    ClipNames,
    Entry,
    PartLayout,
    left_over,
    ranks_of,
    recognise,
)  # fmt: skip
from magmerge.checkpoints.views import CheckpointView, Stretch, whole
from magmerge.core.errors import CheckpointError, UnknownNameError, printable, shortened, suggestion
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

ZERO = "it is zero"
LISTED = 8
"""How many tensors without a place a message lists."""
Shape = tuple[int, ...]
ONES = {"token": 2, "table": 1}
"""Leading dimensions of 1 in a layout."""
COMPUTED = "it is computed from the configuration"
TAKEN = "another tensor has its name"


class _ClipPart(NamedTuple):
    """A part, with its shape as `family.py` says, and how it is stored."""

    stretch: Stretch
    shape: Shape
    dtype: str
    turned: bool


@dataclass(slots=True)
class PartMap:
    """Each new tensor with its stretches. `left_out`: stored tensors that the new family does
    without, and why. `homeless`: those that it has no place for, and why. `lent`: those of the
    model whose names are taken over.
    """

    specs: dict[str, TensorSpec] = field(default_factory=dict)
    stretches: dict[str, tuple[Stretch, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    homeless: dict[str, str] = field(default_factory=dict)
    lent: frozenset[str] = frozenset()

    def keep(self, spec: TensorSpec) -> bool:
        """A stored tensor under its own name; False where another one has that name."""
        if spec.name in self.specs:
            return False
        self.specs[spec.name] = spec
        self.stretches[spec.name] = whole(spec)
        return True


def assemble(specs: Mapping[str, TensorSpec], source: ClipNames, target: ClipNames) -> PartMap:
    """How the tensors `specs`, named as in `source`, make those of `target`. What is no part of a
    CLIP model keeps its name; what is one by its name and not by its shape has no place.
    """
    part_map = PartMap()
    parts: dict[str, _ClipPart] = {}
    unknown = []
    # Whatever a tensor's shape is, it may get another prefix.
    renamed = target.family.name == source.family.name
    for name, spec in specs.items():
        entry = source.entry(name)
        own_parts = None if entry is None else _parts_of(spec, entry)
        if entry is None:
            unknown.append(spec)
        elif own_parts is None or not (renamed or _is_sound(own_parts)):
            part_map.homeless[name] = f"{source.family.name} has no {list(spec.shape)} there"
        else:
            parts |= own_parts
    for part in parts:
        _put(part, parts, target, part_map)
    if target.family.name != source.family.name:
        _add_zero_bias(parts, target, part_map)
    for spec in unknown:
        if not part_map.keep(spec):
            part_map.homeless[spec.name] = TAKEN
    return part_map


def _parts_of(spec: TensorSpec, entry: Entry) -> dict[str, _ClipPart] | None:
    """The parts that a stored tensor is; None where its shape is not that of such a tensor."""
    shape = _plain_shape(spec.shape, entry.layout)
    count = len(entry.parts)
    if shape is None or (count > 1 and (not shape or shape[0] % count)):
        return None
    if count > 1:
        shape = (shape[0] // count, *shape[1:])
    size, turned = math.prod(shape), entry.layout == "turned"
    return {
        part: _ClipPart(Stretch(spec.name, i * size, size), shape, spec.dtype, turned)
        for i, part in enumerate(entry.parts)
    }


def _is_sound(own_parts: Mapping[str, _ClipPart]) -> bool:
    """Whether all parts have as many dimensions as such parts have."""
    pairs = [(ranks_of(name), len(part.shape)) for name, part in own_parts.items()]
    return all(ranks is None or rank in ranks for ranks, rank in pairs)


def _put(part: str, parts: Mapping[str, _ClipPart], target: ClipNames, part_map: PartMap) -> None:
    """Put the tensor together that this part belongs to, unless that is done."""
    own = parts[part].stretch.name
    assert own is not None
    name = target.name_of(part)
    entry = None if name is None else target.entry(name)
    if name is None or entry is None:
        if part in BUFFERS:
            part_map.left_out[own] = COMPUTED
        else:
            half = part.partition(".")[0]
            part_map.homeless[own] = f"{target.family.name} has no place for it ({half})"
        return
    if name in part_map.specs:
        return
    slots = [parts.get(slot) for slot in entry.parts]
    own_parts = [slot for slot in slots if slot is not None]
    alike = len({(own.shape, own.dtype) for own in own_parts}) == 1
    if len(own_parts) != len(slots) or not alike:
        part_map.homeless[own] = "q, k and v are not all there, or not alike"
        return
    turned, shape = entry.layout == "turned", own_parts[0].shape
    if len(own_parts) > 1:
        shape = (len(own_parts) * shape[0], *shape[1:])
    shape = shape[::-1] if turned else (1,) * ONES.get(entry.layout, 0) + shape
    part_map.specs[name] = TensorSpec(name, shape, own_parts[0].dtype)
    part_map.stretches[name] = tuple(
        slot.stretch._replace(turned=slot.turned != turned) for slot in own_parts
    )


def _add_zero_bias(parts: Mapping[str, _ClipPart], target: ClipNames, part_map: PartMap) -> None:
    """timm's projection has a bias, which is zero for the others."""
    name, projection = target.name_of(BIAS), parts.get("vision.projection")
    if name is not None and projection is not None and BIAS not in parts:
        out = projection.shape[0]
        part_map.specs[name] = TensorSpec(name, (out,), projection.dtype)
        part_map.stretches[name] = (Stretch(None, 0, out),)


def _plain_shape(shape: Shape, layout: PartLayout) -> Shape | None:
    if layout == "plain":
        return shape
    if layout == "turned":
        return shape[::-1] if len(shape) == 2 else None
    ones = ONES[layout]
    return shape[ones:] if len(shape) == 3 and shape[:ones] == (1,) * ones else None


class ClipCheckpoint(CheckpointView):
    """`checkpoint` with the tensors of `part_map`; those that it says are lent are `lender`'s.

    `left_out` names the stored tensors that are not in it, and why.
    """

    def __init__(
        self, checkpoint: Checkpoint, part_map: PartMap, lender: Checkpoint | None = None
    ) -> None:
        self._lender, self._lent = lender, part_map.lent
        self.left_out: Mapping[str, str] = MappingProxyType(dict(part_map.left_out))
        super().__init__(checkpoint, part_map.specs, part_map.stretches)

    def raw(self, name: str) -> bool:
        """Whether its stored bytes are a stored tensor's; not of one that is lent."""
        return name not in self._lent and super().raw(name)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if self._lender is not None and name in self._lent:
            return self._lender.read_part(name, start, stop, out)
        return super().read_part(name, start, stop, out)


def in_family(checkpoint: Checkpoint, family: str) -> ClipCheckpoint:
    """A CLIP model's checkpoint with the names, shapes and layouts of `family`: hf_clip, open_clip
    or timm_clip.

    The values are the same ones. Tensors that are no part of CLIP keep their names; buffers that
    `family` computes itself are left out, and so is the text half for timm_clip, which has none.
    Raises UnknownNameError for any other family, and CheckpointError where the names are not
    CLIP's or those of two models, or a weight has no place in `family`.
    """
    if family not in FAMILIES:
        raise UnknownNameError(
            f"there is no family of CLIP names {family!r}", remedy=suggestion(family, FAMILIES)
        )
    source = recognise(checkpoint.specs)
    if source is None:
        problem = "its names are not those of a CLIP model that is known here"
        remedy = f"known are the vision transformers of {', '.join(FAMILIES)}"
        raise CheckpointError(problem, source=checkpoint.source, remedy=remedy)
    second = left_over(checkpoint.specs, source)
    if second:
        raise CheckpointError(
            f"beside the model in {source.family.name}'s names it has {len(second)} weights of "
            f"another CLIP model: {shortened(second)}",
            source=checkpoint.source,
            remedy="save each model to a file of its own",
        )
    part_map = _assembled(checkpoint, source, ClipNames(FAMILIES[family]))
    lost = {}
    for name, reason in part_map.homeless.items():
        entry = source.entry(name)
        if entry is not None and not entry.parts[0].startswith("vision") and family == "timm_clip":
            part_map.left_out[name] = "timm has the vision half only"
        else:
            lost[name] = reason
    if lost:
        lines = [f"{printable(name)}: {reason}" for name, reason in list(lost.items())[:LISTED]]
        raise CheckpointError(
            f"{len(lost)} tensors have no place in {family}: {'; '.join(lines)}",
            source=checkpoint.source,
            remedy="choose another family, or merge with models of the same family",
        )
    return ClipCheckpoint(checkpoint, part_map)


def aligned(checkpoint: Checkpoint, base: Checkpoint) -> ClipCheckpoint | None:
    """A CLIP model under the names of `base`, whose family may be another; None where either is no
    CLIP model. What has no place there keeps its own name.

    Buffers that are no weights and that only `base` stores are read from it. Raises CheckpointError
    where a tensor that has no place has the name of one that has.
    """
    target, source = recognise(base.specs), recognise(checkpoint.specs)
    if target is None or source is None:
        return None
    part_map = _assembled(checkpoint, source, target)
    for name, reason in part_map.homeless.items():
        if not part_map.keep(checkpoint.specs[name]):
            raise CheckpointError(
                reason if reason == TAKEN else f"{reason}, and {TAKEN}",
                source=checkpoint.source,
                tensor=name,
                remedy="rename or remove this tensor",
            )
    for name, stretches in list(part_map.stretches.items()):
        if stretches[0].name is None and name not in base.specs:
            # A projection without a bias needs no zeros.
            del part_map.stretches[name], part_map.specs[name]
    entries = {name: target.entry(name) for name in base.specs if name not in part_map.specs}
    part_map.lent = frozenset(
        name for name, entry in entries.items() if entry is not None and entry.parts[0] in BUFFERS
    )
    part_map.specs |= {name: base.specs[name] for name in part_map.lent}
    return ClipCheckpoint(checkpoint, part_map, base)


def _assembled(checkpoint: Checkpoint, source: ClipNames, target: ClipNames) -> PartMap:
    """The part_map, with a bias of zeros left out where the target has none."""
    part_map = assemble(checkpoint.specs, source, target)
    bias = source.name_of(BIAS)
    if bias in part_map.homeless:
        part_map.homeless[bias] = f"{target.family.name} has no bias there"
        if not bool(checkpoint.read(bias).any()):
            del part_map.homeless[bias]
            part_map.left_out[bias] = ZERO
    return part_map
