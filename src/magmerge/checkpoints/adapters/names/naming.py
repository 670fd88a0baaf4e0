"""From any naming to diffusers' and from there to any other, kohya's of any flavour too.

kohya's lora_unet_... is unet.... or transformer.... in diffusers' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from magmerge.checkpoints.adapters.names import flux
from magmerge.checkpoints.adapters.names.layout_rows import add_rows, module_slots
from magmerge.checkpoints.adapters.names.vocabulary import (
    CLIP,
    LDM,
    T5,
    TRANSFORMER,
    UNET,
    Language,
    Part,
    flat,
    is_text,
    lone,
    prefixed,
    surely_prefixed,
)
from magmerge.checkpoints.adapters.nouns import ModuleSpec
from magmerge.checkpoints.adapters.rows import Composition
from magmerge.checkpoints.names import ldm
from magmerge.core.types import Naming

Flavour = Literal["kohya", "kohya_ldm", "kohya_flux"]

_NAME = re.compile(r"lora_(unet|transformer|te[123]?)_(.+)")
_LDM_START = re.compile(
    r"(input_blocks|output_blocks|middle_block|time_embed|label_emb)_\d|out_[02]$"
)
UNKNOWN = "no module of Stable Diffusion, SDXL or Flux has this name"
NO_COMPONENT = "no model of a diffusion pipeline has this module"


def to_diffusers(naming: Naming, modules: Mapping[str, ModuleSpec]) -> Composition:
    """diffusers' names, with the component first: unet.conv_in."""
    if naming not in ("peft", "diffusers", "diffusers_old"):
        return _from_kohya(modules)
    composition = Composition()
    several = in_parts(modules)
    for name, spec in modules.items():
        if naming != "peft":
            composition.rename(name, name, spec)
        elif spec.kind == "embedding":
            composition.rename(name, None, spec, "an embedding has no name but in PEFT's naming")
        else:
            part = prefixed(name) if several else lone(name)
            composition.rename(name, None if part is None else str(part), spec, NO_COMPONENT)
    return composition


def from_diffusers(naming: Naming, modules: Mapping[str, ModuleSpec]) -> Composition:
    """The names of `naming` for diffusers'."""
    if naming in ("kohya", "kohya_ldm", "kohya_flux"):
        return _to_kohya(modules, naming)
    bare = _is_lone(modules)
    composition = Composition()
    for name, spec in modules.items():
        part = prefixed(name)
        new = part.name if naming == "peft" and bare and part is not None else name
        composition.rename(name, new, spec)
    return composition


def in_parts(names: Iterable[str]) -> bool:
    """Whether PEFT's modules are of several models, and their names begin with the model's."""
    listed = list(names)
    parts = [prefixed(name) for name in listed]
    components = {part.component for part in parts if part is not None}
    if None in parts or not components:
        return False
    return len(components) > 1 or all(map(surely_prefixed, listed))


def _is_lone(names: Iterable[str]) -> bool:
    """Whether all modules are of one model that is known by their names alone, or is no encoder."""
    parts = [prefixed(name) for name in names]
    image = ("unet", "transformer")
    return len({part and part.component for part in parts}) == 1 and all(
        part and lone(part.name) in (part, None if part.component in image else part)
        for part in parts
    )


def flavour(names: Iterable[str]) -> Flavour:
    """Which names of modules a file in kohya's manner uses."""
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match[1] != "unet":
            continue
        if flux.is_own(match[2]):
            return "kohya_flux"
        if _LDM_START.match(match[2]):
            return "kohya_ldm"
    return "kohya"


def _from_kohya(modules: Mapping[str, ModuleSpec]) -> Composition:
    """diffusers' modules for those of a file in kohya's manner."""
    composition = Composition()
    third = _third_encoder(modules)
    matches = {name: _NAME.fullmatch(name) for name in modules}
    image = {m[2]: n for n, m in matches.items() if m and m[1] in ("unet", "transformer")}
    by_table = {image[inner]: slots for inner, slots in module_slots(image).items()}
    add_rows(modules, by_table, composition)
    for name, spec in modules.items():
        match = matches[name]
        if name in by_table:
            continue
        if match is None:
            composition.rename(name, None, spec, UNKNOWN)
        elif match[1].startswith("te"):
            components = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
            inner = CLIP.read(match[2]) or T5.read(match[2])
            part = None if inner is None else Part(components.get(match[1], third), inner)
            composition.rename(name, None if part is None else str(part), spec, UNKNOWN)
        elif not flux.split(name, match[2], spec, composition, "transformer."):
            part = _image_model(match[2])
            composition.rename(name, None if part is None else str(part), spec, UNKNOWN)
    return composition


def _image_model(flat_name: str) -> Part | None:
    name = UNET.read(flat_name) or ldm.to_diffusers(LDM.read(flat_name) or "")
    if name is not None:
        return Part("unet", name)
    name = TRANSFORMER.read(flat_name)
    return None if name is None else Part("transformer", name)


def _third_encoder(names: Iterable[str]) -> str:
    """What lora_te3, which is T5, is to diffusers: Flux' second encoder, or SD 3's third."""
    text = list(names)
    if any(name.startswith("lora_te2_") for name in text):
        return "text_encoder_3"
    image = [name for name in text if name.startswith(("lora_unet_", "lora_transformer_"))]
    of_flux = any("_single_" in name or "_double_" in name for name in image)
    blocks = any("_transformer_blocks_" in name for name in image)
    return "text_encoder_3" if blocks and not of_flux else "text_encoder_2"


def _to_kohya(modules: Mapping[str, ModuleSpec], to: Flavour) -> Composition:
    """The modules of a file in kohya's manner for diffusers'."""
    composition = Composition()
    parts = {name: prefixed(name) for name in modules}
    inside = [part for part in parts.values() if part is not None]
    family = ldm.family_of(part.name for part in inside if part.component == "unet")
    several = any(part.component not in ("unet", "text_encoder") for part in inside)
    first = "lora_te1_" if several or family == "sdxl" else "lora_te_"
    of_flux = {}
    for name, part in parts.items():
        if part is not None and part.component == "transformer" and to == "kohya_flux":
            of_flux[part.name] = (name, modules[name])
            continue
        new = None if part is None else _named(part, to, family, first)
        composition.rename(name, new, modules[name], f"it has no name under {to}")
    flux.join(of_flux, composition, "lora_unet_")
    return composition


def _named(part: Part, to: Flavour, family: ldm.UNetFamily | None, first: str) -> str | None:
    """The name under `to`; `first` is what begins those of the first text encoder."""
    if part.component == "text_encoder":
        return _flattened(first, part.name, CLIP)
    if part.component == "text_encoder_2" and CLIP.has(part.name):
        return _flattened("lora_te2_", part.name, CLIP)
    if is_text(part.component):
        return _flattened("lora_te3_", part.name, T5)
    if part.component == "unet" and to == "kohya_ldm":
        own = ldm.from_diffusers(part.name, family)
        return None if own is None else _flattened("lora_unet_", own, LDM)
    languages = {"unet": UNET, "transformer": TRANSFORMER}
    if to != "kohya" or part.component not in languages:
        return None
    return _flattened(f"lora_{part.component}_", part.name, languages[part.component])


def _flattened(prefix: str, name: str, language: Language) -> str | None:
    """The name with _ for dots, if it can be read back."""
    return f"{prefix}{flat(name)}" if language.read(flat(name)) == name else None
