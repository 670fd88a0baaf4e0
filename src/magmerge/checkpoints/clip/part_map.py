"""From one family's tensors to another's: renamed, cut, put together and turned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from magmerge.checkpoints.clip.families import BIAS, BUFFERS, Entry, Layout, Naming, ranks_of
from magmerge.core.types import TensorSpec

Shape = tuple[int, ...]
COMPUTED = "it is computed from the configuration"
TAKEN = "another tensor has its name"


class Stretch(NamedTuple):
    """One part: `size` entries of the stored tensor `name` from `start` on, as they follow each
    other in memory; if `turned`, of the transposed tensor. Without a name: zeros.
    """

    name: str | None
    start: int
    size: int
    turned: bool


class _Part(NamedTuple):
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
        self.stretches[spec.name] = (Stretch(spec.name, 0, math.prod(spec.shape), False),)
        return True


def assemble(specs: Mapping[str, TensorSpec], source: Naming, target: Naming) -> PartMap:
    """How the tensors `specs`, named as in `source`, make those of `target`.

    What is no part of a CLIP model keeps its name. What is one by its name and not by its shape
    has no place.
    """
    part_map = PartMap()
    parts: dict[str, _Part] = {}
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


def _parts_of(spec: TensorSpec, entry: Entry) -> dict[str, _Part] | None:
    """The parts that a stored tensor is; None where its shape is not that of such a tensor."""
    shape = _plain_shape(spec.shape, entry.layout)
    count = len(entry.parts)
    if shape is None or (count > 1 and (not shape or shape[0] % count)):
        return None
    if count > 1:
        shape = (shape[0] // count, *shape[1:])
    size, turned = math.prod(shape), entry.layout == "turned"
    return {
        part: _Part(Stretch(spec.name, i * size, size, False), shape, spec.dtype, turned)
        for i, part in enumerate(entry.parts)
    }


def _is_sound(own_parts: Mapping[str, _Part]) -> bool:
    """Whether all parts have as many dimensions as such parts have."""
    pairs = [(ranks_of(name), len(part.shape)) for name, part in own_parts.items()]
    return all(ranks is None or rank in ranks for ranks, rank in pairs)


def _put(part: str, parts: Mapping[str, _Part], target: Naming, part_map: PartMap) -> None:
    """Put the tensor together that this part belongs to, unless that is done."""
    own = parts[part].stretch.name
    assert own is not None
    place = target.place(part)
    if place is None:
        if part in BUFFERS:
            part_map.left_out[own] = COMPUTED
        else:
            half = part.partition(".")[0]
            part_map.homeless[own] = f"{target.family.name} has no place for it ({half})"
        return
    if place.name in part_map.specs:
        return
    slots = [parts.get(name) for name in place.entry.parts]
    own_parts = [slot for slot in slots if slot is not None]
    alike = len({(own.shape, own.dtype) for own in own_parts}) == 1
    if len(own_parts) != len(slots) or not alike:
        part_map.homeless[own] = "q, k and v are not all there, or not alike"
        return
    turned = place.entry.layout == "turned"
    shape = own_parts[0].shape
    if len(own_parts) > 1:
        shape = (len(own_parts) * shape[0], *shape[1:])
    part_map.specs[place.name] = TensorSpec(
        place.name, _stored_shape(shape, place.entry.layout), own_parts[0].dtype
    )
    part_map.stretches[place.name] = tuple(
        own.stretch._replace(turned=own.turned != turned) for own in own_parts
    )


def _add_zero_bias(parts: Mapping[str, _Part], target: Naming, part_map: PartMap) -> None:
    """timm's projection has a bias, which is zero for the others."""
    place = target.place(BIAS)
    projection = parts.get("vision.projection")
    if place is not None and projection is not None and BIAS not in parts:
        out = projection.shape[0]
        part_map.specs[place.name] = TensorSpec(place.name, (out,), projection.dtype)
        part_map.stretches[place.name] = (Stretch(None, 0, out, False),)


def _plain_shape(shape: Shape, layout: Layout) -> Shape | None:
    if layout == "plain":
        return shape
    if layout == "turned":
        return shape[::-1] if len(shape) == 2 else None
    ones = 2 if layout == "token" else 1
    return shape[ones:] if len(shape) == 3 and shape[:ones] == (1,) * ones else None


def _stored_shape(shape: Shape, layout: Layout) -> Shape:
    if layout == "turned":
        return shape[::-1]
    return {"plain": (), "token": (1, 1), "table": (1,)}[layout] + shape
