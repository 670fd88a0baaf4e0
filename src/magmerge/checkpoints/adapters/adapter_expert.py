"""Adapters as experts: task vectors on a base in any layout, without building the whole model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.factored import TILE, rows_between
from magmerge.checkpoints.adapters.nouns import Adapter, LowRank
from magmerge.checkpoints.adapters.placement import Place, Placement, find, mismatch
from magmerge.checkpoints.heads import Head, head_of, scales, shared_embeddings
from magmerge.core.errors import Fault
from magmerge.core.models import OWN_BASE, Checkpoint, Expert
from magmerge.core.pieces import cut
from magmerge.core.types import TensorSpec
from magmerge.linalg.device import moved

KEPT = 8
"""Modules whose factors stay in memory, for the pieces that are read in turn."""
WHOLE = "merge the adapter into its base with PEFT and give the whole model"
UNTIE = (
    "give a base whose head is a matrix of its own: in transformers set the weight of "
    "model.get_output_embeddings() to a copy of the embedding and "
    "model.config.tie_word_embeddings to False, and save it"
)
INSEPARABLE = (
    "train the adapter without the embedding and the head: models of this type compute otherwise "
    "where the two are apart"
)
NAMED = 3
"""Modules that a message names where none of an adapter's is in the base."""


class AdapterExpert:
    """An adapter on `base`: what it does not touch has a task vector of zeros.

    Modules that the base lacks, and shapes that do not fit it, stand in `specs` and `faults`, so
    that the plan can report all of them at once.
    """

    def __init__(self, name: str, adapter: Adapter, base: Checkpoint) -> None:
        self.name = name
        self.source = adapter.source
        self.files = adapter.files
        self.adapter = adapter
        self.whole = None
        self.ties = base.ties
        self.faults: list[Fault] = []
        self.absent: Mapping[str, Sequence[range]] = MappingProxyType({})
        self.apart: Head | None = None
        placement = find(adapter, base)
        self.notes = (*adapter.notes, *placement.notes)
        self._read = lru_cache(KEPT)(adapter.read)
        self._places: dict[str, list[Place]] = {}
        for place in placement.places:
            self._places.setdefault(place.tensor, []).append(place)
        self._replaced = self._replacements(placement.names)
        whole = [key for key in adapter.whole if key not in placement.names]
        bare = [key for key in whole if key.removesuffix(".weight") not in placement.lacking]
        lacking = [*placement.lacking, *bare]
        heads = self._tied_heads(lacking, base)
        lacking = self._report(placement, base, [name for name in lacking if name not in heads])
        specs = dict(base.specs)
        for target, key in self._replaced.items():
            specs[target] = TensorSpec(target, adapter.whole[key].shape, adapter.whole[key].dtype)
        specs |= {name: TensorSpec(name, (), "F32") for name in lacking}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.untouched = frozenset(set(base.specs) - set(self._places) - set(self._replaced))

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The base's entries with the adapter merged into them."""
        return self.delta(name, base, start, out).add_(base)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """Entries of scale * up @ down, of a replaced tensor less the base's, or zeros, like
        `base`.
        """
        if name in self._replaced:
            key, stop = self._replaced[name], start + base.numel()
            whole = moved(self.adapter.read_whole_part(key, start, stop), base, out).sub_(base)
            return (
                whole if name not in self._places else whole.add_(self._product(name, base, start))
            )
        result = self._product(name, base, start, out)
        return result if out is None or out is result else out.copy_(result)

    def _product(self, name: str, base: Tensor, start: int, out: Tensor | None = None) -> Tensor:
        """The same of the modules alone; in `out` if that is contiguous."""
        if out is None or not out.is_contiguous():
            result = torch.zeros(base.shape, dtype=base.dtype, device=base.device)
        else:
            result = out.zero_()
        for place in self._places.get(name, ()):
            _put_rows(self._read(place.module), place, result.view(-1), start)
        return result

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether every module has a factor of zeros, as in an adapter that was never trained."""
        return not self._replaced and self.adapter.is_zero()

    def equals(self, other: Expert, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether both have the same factors, scaled alike, for the same modules."""
        if not isinstance(other, AdapterExpert):
            return False
        mine, theirs = self.adapter, other.adapter
        if {**mine.modules} != {**theirs.modules} or {**mine.whole} != {**theirs.whole}:
            return False
        return all(
            torch.equal(own, its)
            for name in mine.modules
            for own, its in zip(mine.read(name)[:2], theirs.read(name)[:2], strict=True)
        ) and all(
            torch.equal(
                mine.read_whole_part(name, piece.start, piece.stop),
                theirs.read_whole_part(name, piece.start, piece.stop),
            )
            for name, spec in mine.whole.items()
            for piece in cut(spec.shape, "other", "entries")
        )

    def _replacements(self, names: Mapping[str, str]) -> dict[str, str]:
        """The base's tensors that the adapter replaces, to their names in the adapter."""
        replaced: dict[str, str] = {}
        for key in self.adapter.whole:
            target = names.get(key)
            # The weight of an adapted layer as it was saved beside its factors is one with them.
            own = {f"{place.module}.weight" for place in self._places.get(target or "", ())}
            if target in replaced or (own and own != {key}):
                self._note(f"{target} has the task vector of two modules of {self.name}", WHOLE)
            elif target is not None:
                replaced[target] = key
        return replaced

    def _tied_heads(self, lacking: Sequence[str], base: Checkpoint) -> frozenset[str]:
        """What of `lacking` is the head, which is the embedding in the base; and a fault of it.

        PEFT runs them as different matrices then, whichever of them the adapter changes.
        """
        shared = shared_embeddings(base)
        if not shared or self.adapter.config.get("ensure_weight_tying"):
            return frozenset()
        touched = sorted(shared & (set(self._places) | set(self._replaced)))
        shapes = {base.specs[name].shape for name in shared}
        own = {name: spec.shape for name, spec in self.adapter.whole.items()}
        own |= {name: spec.shape for name, spec in self.adapter.modules.items()}
        heads = [name for name in lacking if own[name] in shapes]
        if touched or heads:
            self.apart = head_of(base)
        remedy = INSEPARABLE if scales(base) else UNTIE
        for name in touched:
            self._note(
                f"{name}: {self.name} changes the embedding or the head, and in the base "
                f"{base.source} it is both",
                remedy,
            )
        for name in heads if not touched else ():
            self._note(
                f"{name}: {self.name} changes the head, and in the base {base.source} "
                f"{' and '.join(sorted(shared))} is both",
                remedy,
            )
        return frozenset(heads)

    def _report(self, placement: Placement, base: Checkpoint, lacking: list[str]) -> list[str]:
        """Put into `faults` what does not fit; what of `lacking` the plan is to tell."""
        ending = ".weight" if self.adapter.naming == "peft" else ""
        modules = self.adapter.modules
        lacking = [f"{name}{ending}" if name in modules else name for name in lacking]
        seems = mismatch(self.adapter, placement, base)
        if seems is not None:
            self._note(f"{self.name} seems to be for another base: {seems}", OWN_BASE)
        if not placement.places and len(lacking) > NAMED:
            names = ", ".join(lacking[:NAMED])
            self._note(
                f"none of the {len(lacking)} modules of {self.name} is in the base: {names}, ...",
                OWN_BASE,
            )
            lacking = []
        for module, tensor, shape in placement.misfits:
            self._note(
                f"{tensor}: the task vector {list(modules[module].shape)} of {self.name} does not "
                f"fit the base's {list(shape)} ({module})",
                "give the base that this adapter was trained on",
            )
        for tensor, places in self._places.items():
            rows = sorted((place.at, place.at + place.rows) for place in places)
            if any(end > begin for (_, end), (begin, _) in pairwise(rows)):
                self._note(f"{tensor} has the task vector of two modules of {self.name}", WHOLE)
        return lacking

    def _note(self, text: str, remedy: str) -> None:
        self.faults.append(Fault(text, remedy))


def _put_rows(factors: LowRank, place: Place, part: Tensor, start: int) -> None:
    """Write a module's rows into `part`, the entries of the base's tensor from `start` on."""
    left, right = factors.up.flatten(1), factors.down.flatten(1)
    if place.turned:
        left, right = right.T, left.T
    row = right.shape[1]
    rows = left.shape[0] if place.turned else place.rows
    first = max(start, place.at * row)
    stop = min(start + part.numel(), (place.at + rows) * row)
    if first >= stop:
        return
    # The same entries, counted from the module's first row that is multiplied.
    tile = (first // row - place.at + place.row) // TILE * TILE
    shift = (place.row - place.at - tile) * row
    left = left[tile : tile - (-(stop + shift) // row)]
    product = rows_between(left.to(part), right.to(part), first + shift, stop + shift)
    part[first - start : stop - start] = product.mul_(factors.scale)
