"""Adapters as experts: task vectors on a base in any layout, without building the whole model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.beside import placed, put_rows
from magmerge.checkpoints.adapters.expert_places import places_of_experts
from magmerge.checkpoints.adapters.factored import TILE, rows_between
from magmerge.checkpoints.adapters.nouns import Adapter, Entries, LowRank
from magmerge.checkpoints.adapters.placement import Place, Placement, find, mismatch
from magmerge.checkpoints.adapters.rescaling import Rescaling, misfit, places_of_factors
from magmerge.checkpoints.heads import Head, head_of, inseparable, shared_embeddings
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.core.errors import Fault
from magmerge.core.models import OWN_BASE, Checkpoint, Expert
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
    "where the two are apart, or have the embedding in several places"
)
SEVERAL = "give a base that has each of its modules in one tensor, as the adapter's trainer had it"
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
        experts, strange = places_of_experts(adapter, base, placement)
        placement.places += experts
        for parameter in strange:
            self._note(f"{parameter}: its experts of {name} are not in the base", OWN_BASE)
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
        self._beside = placed(adapter, base, placement)
        self._read_entries = lru_cache(KEPT)(self._opened)
        self._rescaling = self._rescaled(base, placement)
        lacking += self._report_beside(placement)
        specs = dict(base.specs)
        for target, key in self._replaced.items():
            specs[target] = TensorSpec(target, adapter.whole[key].shape, adapter.whole[key].dtype)
        specs |= {name: TensorSpec(name, (), "F32") for name in lacking}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        beside = {*self._beside.added, *self._beside.tokens, *self._rescaling.tensors}
        self.untouched = frozenset({*base.specs} - {*self._places, *self._replaced} - beside)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The base's entries with the adapter merged into them."""
        return self.delta(name, base, start, out).add_(base)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """Entries of scale * up @ down, of a replaced tensor less the base's, of what is added, or
        zeros, like `base`; rescaled where the adapter multiplies what it changes.
        """
        result = self._change(name, base, start, out)
        for addition in self._beside.added.get(name, ()):
            addition.put(result.view(-1), start)
        if name in self._rescaling.tensors:
            self._rescaling.apply(name, base, start, result)
        if name in self._beside.tokens:
            put_rows(self._beside.tokens[name], base, start, result)
        return result if out is None or out is result else out.copy_(result)

    def _change(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """What the modules and the replaced tensor add; in `out` if that is contiguous."""
        if name not in self._replaced:
            return self._product(name, base, start, out)
        own = out if out is not None and out.is_contiguous() else None
        key, stop = self._replaced[name], start + base.numel()
        whole = moved(self.adapter.read_whole_part(key, start, stop), base, own).sub_(base)
        return whole if name not in self._places else whole.add_(self._product(name, base, start))

    def _product(self, name: str, base: Tensor, start: int, out: Tensor | None = None) -> Tensor:
        """The same of the modules alone; in `out` if that is contiguous."""
        if out is None or not out.is_contiguous():
            result = torch.zeros(base.shape, dtype=base.dtype, device=base.device)
        else:
            result = out.zero_()
        for place in self._places.get(name, ()):
            module = self.adapter.stored.get(place.module)
            if module is None or module.entries is None or place.turned:
                _put_rows(self._read(place.module), place, result.view(-1), start)
            else:
                width = math.prod(self.specs[name].shape[1:])
                _put_entries(self._read_entries(place.module), place, result.view(-1), start, width)
        return result

    def _opened(self, module: str) -> Entries:
        opened = self.adapter.stored[module].entries
        assert opened is not None
        return opened()

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether every module has a factor of zeros, as in an adapter that was never trained."""
        return not self._replaced and self.adapter.is_zero()

    def equals(self, other: Expert, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether both have the same factors, scaled alike, for the same modules."""
        return isinstance(other, AdapterExpert) and self.adapter.equals(other.adapter)

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
        if not shared:
            return frozenset()
        touched = sorted(shared & (set(self._places) | set(self._replaced)))
        shapes = {base.specs[name].shape for name in shared}
        own = {name: spec.shape for name, spec in self.adapter.whole.items()}
        own |= {name: spec.shape for name, spec in self.adapter.modules.items()}
        heads = [name for name in lacking if own[name] in shapes]
        if touched or heads:
            self.apart = head_of(base)
        remedy = INSEPARABLE if inseparable(base) else UNTIE
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
            own = modules[module]
            if (
                own.flattened
                and shape[:1] == own.shape[:1]
                and math.prod(shape) == math.prod(own.shape)
            ):
                continue
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

    def _rescaled(self, base: Checkpoint, placement: Placement) -> Rescaling:
        """What multiplies weights of the base; faults where it has other rows or columns."""
        every = bool(self.adapter.config.get("fan_in_fan_out"))
        kinds = kinds_of(base, read_model_config(base)) if self.adapter.rescales else {}
        turned = frozenset(name for name, kind in kinds.items() if every or kind == "transposed")
        factors = places_of_factors(self.adapter, base, turned, placement)
        for place in factors:
            shape = base.specs[place.tensor].shape
            if misfit(place, self.adapter.rescales[place.module], shape):
                self._note(
                    f"{place.tensor}: {self.name} multiplies "
                    f"{self.adapter.rescales[place.module].size} rows or columns of the base's "
                    f"{list(shape)}",
                    OWN_BASE,
                )
        whole = Counter(place.module for place in placement.places)
        for module, rescale in self.adapter.rescales.items():
            if rescale.axis == "in" and whole[module] > 1:
                self._note(
                    f"{module}: its magnitudes (dora_scale) are of columns, and the base has its "
                    "rows in several tensors",
                    SEVERAL,
                )
        return Rescaling(self.adapter, base, [*placement.places, *factors], self._change)

    def _report_beside(self, placement: Placement) -> list[str]:
        """Faults of what is no module's weight; the names that the base lacks."""
        for text in self._beside.misfits:
            self._note(f"{text} ({self.name})", OWN_BASE)
        bare = {module for module, rescale in self.adapter.rescales.items() if not rescale.normed}
        lacking = [f"{module}.weight" for module in sorted(bare)]
        lacking = [name for name in lacking if name not in placement.names]
        own = {f"{module}.bias" for module in placement.lacking}
        return lacking + [name for name in self._beside.lacking if name not in own]

    def _note(self, text: str, remedy: str) -> None:
        self.faults.append(Fault(text, remedy))


def _put_entries(entries: Entries, place: Place, part: Tensor, start: int, row: int) -> None:
    """The same of a module whose task vector is read by its entries; `row` is the length of one."""
    first = max(start, place.at * row)
    stop = min(start + part.numel(), (place.at + place.rows) * row)
    if first < stop:
        shift = (place.row - place.at) * row
        part[first - start : stop - start] = entries(first + shift, stop + shift).to(part)


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
    torch.mul(product, factors.scale, out=part[first - start : stop - start])
