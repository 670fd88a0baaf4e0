"""From any naming to diffusers' and from there to any other."""

from __future__ import annotations

from collections.abc import Iterable

from magmerge.checkpoints.adapters.names import kohya
from magmerge.checkpoints.adapters.names.assembly import Assembly, Modules
from magmerge.checkpoints.adapters.names.components import Part, prefixed, surely_prefixed, told
from magmerge.core.types import Naming

NO_COMPONENT = "no model of a diffusion pipeline has this module"


def to_diffusers(naming: Naming, modules: Modules) -> Assembly:
    """diffusers' names, with the component first: unet.conv_in."""
    if naming not in ("peft", "diffusers", "diffusers_old"):
        return kohya.to_diffusers(modules)
    assembly = Assembly()
    several = in_parts(modules)
    for name, spec in modules.items():
        if naming != "peft":
            assembly.rename(name, name, spec)
        elif spec.kind == "embedding":
            assembly.rename(name, None, spec, "an embedding has no name but in PEFT's naming")
        else:
            part = prefixed(name) if several else told(name)
            assembly.rename(name, None if part is None else str(part), spec, NO_COMPONENT)
    return assembly


def from_diffusers(naming: Naming, modules: Modules) -> Assembly:
    """The names of `naming` for diffusers'."""
    if naming in ("kohya", "kohya_ldm", "kohya_flux"):
        return kohya.from_diffusers(modules, naming)
    bare = _is_lone(modules)
    assembly = Assembly()
    for name, spec in modules.items():
        part = prefixed(name)
        new = part.name if naming == "peft" and bare and part is not None else name
        assembly.rename(name, new, spec)
    return assembly


def in_parts(names: Iterable[str]) -> bool:
    """Whether PEFT's modules are of several models, and their names begin with the model's."""
    listed = list(names)
    parts = [prefixed(name) for name in listed]
    components = {part.component for part in parts if part is not None}
    if None in parts or not components:
        return False
    return len(components) > 1 or all(surely_prefixed(name) is not None for name in listed)


def _is_lone(names: Iterable[str]) -> bool:
    """Whether all modules are of one model that is known by their names alone, or is no encoder."""
    parts = [prefixed(name) for name in names]
    components = {part.component for part in parts if part is not None}
    if None in parts or len(components) != 1:
        return False
    return all(_is_plain(part) for part in parts if part is not None)


def _is_plain(part: Part) -> bool:
    found = told(part.name)
    return found == part or (found is None and part.component in ("unet", "transformer"))
