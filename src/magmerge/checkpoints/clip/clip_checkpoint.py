"""A CLIP checkpoint under another family's names, each tensor put together when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from magmerge.checkpoints.clip.families import BIAS, BUFFERS, FAMILIES, Naming, left_over, recognise
from magmerge.checkpoints.clip.part_map import TAKEN, PartMap, Stretch, assemble
from magmerge.checkpoints.views import View
from magmerge.core.errors import CheckpointError, UnknownNameError, printable, shortened, suggestion
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

ZERO = "it is zero"
LISTED = 8
"""How many tensors without a place a message lists."""


class ClipCheckpoint(View):
    """`checkpoint` with the tensors of `part_map`; only what a tensor is made of is read for it.

    `left_out` names the stored tensors that are not in it, and why. Those that the part_map says
    are lent are `lender`'s.
    """

    def __init__(
        self, checkpoint: Checkpoint, part_map: PartMap, lender: Checkpoint | None = None
    ) -> None:
        self._lent: dict[str, Checkpoint] = (
            {} if lender is None else dict.fromkeys(part_map.lent, lender)
        )
        self._stretches = part_map.stretches
        self.left_out: Mapping[str, str] = MappingProxyType(dict(part_map.left_out))
        whole = {
            stretches[0].name: name
            for name, stretches in self._stretches.items()
            if len(stretches) == 1
            and stretches[0].name is not None
            and not stretches[0].turned
            and stretches[0].size == math.prod(checkpoint.specs[stretches[0].name].shape)
        }
        super().__init__(checkpoint, part_map.specs, whole)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name in self._lent:
            return self._lent[name].read_part(name, start, stop, out)
        out = self._room(name, stop - start, out)
        begin = 0
        for stretch in self._stretches[name]:
            first, last = max(start, begin), min(stop, begin + stretch.size)
            if first < last:
                part = out[first - start : last - start]
                self._fill(part, stretch, first - begin, last - begin)
            begin += stretch.size
        return out

    def _fill(self, out: Tensor, stretch: Stretch, start: int, stop: int) -> None:
        """Entries [start, stop) of a stretch."""
        if stretch.name is None:
            out.zero_()
        elif stretch.turned:
            turned = self._checkpoint.read(stretch.name).t().reshape(-1)
            out.copy_(turned[start:stop])
        else:
            self._checkpoint.read_part(
                stretch.name, stretch.start + start, stretch.start + stop, out
            )


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
        raise CheckpointError(
            "its names are not those of a CLIP model that is known here",
            source=checkpoint.source,
            remedy=f"known are the vision transformers of {', '.join(FAMILIES)}",
        )
    second = left_over(checkpoint.specs, source)
    if second:
        raise CheckpointError(
            f"beside the model in {source.family.name}'s names it has {len(second)} weights of "
            f"another CLIP model: {shortened(second)}",
            source=checkpoint.source,
            remedy="save each model to a file of its own",
        )
    part_map = _assembled(checkpoint, source, Naming(FAMILIES[family]))
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
    _lend(base, target, part_map)
    return ClipCheckpoint(checkpoint, part_map, base)


def _lend(base: Checkpoint, target: Naming, part_map: PartMap) -> None:
    """Count the base's buffers as given where they are not there."""
    entries = {name: target.entry(name) for name in base.specs if name not in part_map.specs}
    part_map.lent = frozenset(
        name for name, entry in entries.items() if entry is not None and entry.parts[0] in BUFFERS
    )
    part_map.specs |= {name: base.specs[name] for name in part_map.lent}


def _assembled(checkpoint: Checkpoint, source: Naming, target: Naming) -> PartMap:
    """The part_map, with a bias of zeros left out where the target has none."""
    part_map = assemble(checkpoint.specs, source, target)
    place = source.place(BIAS)
    if place is not None and place.name in part_map.homeless:
        if not bool(checkpoint.read(place.name).any()):
            del part_map.homeless[place.name]
            part_map.left_out[place.name] = ZERO
        else:
            part_map.homeless[place.name] = f"{target.family.name} has no bias there"
    return part_map
