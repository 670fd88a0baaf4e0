"""Which model of a document is the base, which are experts, what they are called, and the slices
of the result that they make.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core.mergekit_dialect.document import Document, Module, OutputSlice, Source
from magmerge.core.mergekit_dialect.method_table import METHODS, MODULES, Stack
from magmerge.core.mergekit_dialect.nodes import Faults
from magmerge.core.mergekit_dialect.settings import Region

TAKEN = ("base", "merged", "union")
"""Names that mean something else in a recipe."""


class Place(NamedTuple):
    """A slice of the result: its region, and its sources by "base" or their experts' names.

    `base` is the expert that is the base here and nowhere else; `turned` tells whether, of two
    models alike, the second is the one that base_model names.
    """

    region: Region
    slice_: OutputSlice
    module: Module
    sources: Mapping[str, Source]
    base: str | None
    turned: bool


class Roles(NamedTuple):
    """The base and the experts of a recipe by name, and the places of the result.

    `unlisted` is a base_model that is none of the sources, and has no role in the method.
    """

    base: str | None
    experts: Mapping[str, str]
    places: Sequence[Place]
    unlisted: str | None

    @property
    def sliced(self) -> bool:
        """Whether the result's blocks are not just those of all the models."""
        models = {frozenset(place.sources) for place in self.places}
        return len(models) > 1 or any(place.region.layers for place in self.places)


def roles_of(document: Document, *, counted: bool, faults: Faults) -> Roles:
    """The roles of all models. `counted`: a base_model that is none of the models of a method
    without a base is one more of them.
    """
    table = METHODS[document.method]
    base = document.base
    if table.base != "other" and base is None:
        base = next((s.base for s in document.slices if s.base is not None), None)
    modules = _merged_alike(document)
    listed = {source.model for slice_ in document.slices for source in slice_.sources}
    whole = all(source.layers is None for s in document.slices for source in s.sources)
    whole = whole and all(len(module.slices) == 1 for module in modules)
    alone = table.base == "other" and base is not None and base not in listed
    unlisted = None
    if alone and whole and (counted or document.method == "slerp"):
        modules = [_with_source(module, str(base)) for module in modules]
    elif alone:
        unlisted = base
    first = base if table.base == "other" and unlisted is None else None
    names = _Names(first)
    places = _places(document, modules, base, names, faults)
    if not places:
        faults.add(document.line, "no module with layers is given", "name its models or slices")
    role = None if table.base == "other" else base
    return Roles(role, names.experts, places, unlisted)


def _with_source(module: Module, model: str) -> Module:
    """A module of whole models with one more."""
    (slice_,) = module.slices
    source = Source(model, None, {}, slice_.line)
    return module._replace(slices=(slice_._replace(sources=(*slice_.sources, source)),))


def _merged_alike(document: Document) -> Sequence[Module]:
    """The modules; one without a name where all have the same whole models and parameters."""
    plain = [
        (_plain(module.settings), [(s.model, s.layers, _plain(s.settings)) for s in slice_.sources])
        for module in document.modules
        for slice_ in module.slices
    ]
    whole = all(s.layers is None for slice_ in document.slices for s in slice_.sources)
    if document.modules and whole and all(part == plain[0] for part in plain):
        return [document.modules[0]._replace(name=None)]
    # The module whose tensors are all that no other one has comes last.
    return sorted(document.modules, key=lambda module: _stack(module).part is None)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: node.plain for name, node in settings.items()}


class _Names:
    """Experts by name: short ones from their strings, each its own."""

    def __init__(self, first: str | None) -> None:
        self.experts: dict[str, str] = {}
        if first is not None:
            self.expert(first, ())

    def expert(self, model: str, besides: Sequence[str]) -> str:
        """The name of a model; another one for the same model where one is among `besides`."""
        for name, path in self.experts.items():
            if path == model and name not in besides:
                return name
        path = model.rstrip("/\\")
        if not os.path.lexists(path):
            path = model.rpartition("+")[2].partition("@")[0].rstrip("/\\")
        stem = re.split(r"[/\\]", path)[-1].removesuffix(".safetensors") or "model"
        name, repeat = f"{stem}-model" if stem in TAKEN else stem, 2
        while name in self.experts:
            name, repeat = f"{stem}-{repeat}", repeat + 1
        self.experts[name] = model
        return name


def _places(
    document: Document, modules: Sequence[Module], base: str | None, names: _Names, faults: Faults
) -> list[Place]:
    places = []
    for module in modules:
        start, stack = 0, _stack(module)
        for slice_ in module.slices:
            length = slice_.length
            layers = None if length is None else (start, start + length)
            start += length or 0
            region = Region(stack.stack, layers, stack.part if layers is None else None)
            if stack.blocks or layers is None:
                places.append(_place(document, module, slice_, region, base, names, faults))
    return places


def _stack(module: Module) -> Stack:
    if module.name is None:
        return Stack()
    return MODULES.get(module.name) or Stack(module.name, module.name)


def _place(
    document: Document,
    module: Module,
    slice_: OutputSlice,
    region: Region,
    base: str | None,
    names: _Names,
    faults: Faults,
) -> Place:
    table = document.table
    own = slice_.base or base
    sources: dict[str, Source] = {}
    local = None
    for source in slice_.sources:
        is_base = source.model == own and own is not None and table.base != "other"
        if is_base and own == base and "base" not in sources:
            sources["base"] = source
            continue
        name = names.expert(source.model, [*sources])
        sources[name] = source
        if is_base and local is None and own != base:
            local = name
    models = [source.model for source in slice_.sources]
    _check(document, slice_, own, models, faults)
    known = [name for name in names.experts if name in sources]
    turned = (
        document.method == "slerp"
        and len(known) == 2
        and own is not None
        and names.experts[known[0]] != own
    )
    return Place(region, slice_, module, sources, local, turned)


def _check(
    document: Document,
    slice_: OutputSlice,
    base: str | None,
    models: Sequence[str],
    faults: Faults,
) -> None:
    """Faults for a base that is missing, and for too few or too many models."""
    table, method, line = document.table, document.method, slice_.line
    needed = table.base == "needed" or method == "slerp"
    if needed and base is None:
        faults.add(document.line, f"{method} has no base_model", "name it: base_model: PATH")
        return
    ranged = any(source.layers is not None for source in slice_.sources)
    if ranged and base is not None and base not in models and (needed or table.base == "possible"):
        faults.add(
            line,
            f"the base_model {base} is no source of this slice",
            "name it as one of its sources, with its layer_range",
        )
        return
    count = len(models)
    if table.base != "other" and base in models:
        count -= 1
    least, most = table.experts
    if count < least or (most is not None and count > most):
        meant = f"{least}" if most == least else f"at least {least}"
        beside = " beside the base" if table.base != "other" and base is not None else ""
        faults.add(
            line,
            f"{method} merges {meant} model{'s' if meant != '1' else ''}{beside}, and "
            f"{'a slice' if ranged else 'this recipe'} has {count}",
            "name as many, or take another merge_method: ties, linear, multislerp",
        )
