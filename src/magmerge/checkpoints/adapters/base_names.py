"""A base's tensors under diffusers' names for their modules, and under those of an adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from magmerge.checkpoints.adapters.names import flux
from magmerge.checkpoints.adapters.names.layout_rows import add_rows, tensor_slots
from magmerge.checkpoints.adapters.names.naming import from_diffusers
from magmerge.checkpoints.adapters.names.vocabulary import (
    TRANSFORMER,
    UNET,
    canonical,
    flat,
    is_text,
    lone,
)
from magmerge.checkpoints.adapters.nouns import Content, LowRank, ModuleKind, ModuleSpec
from magmerge.checkpoints.adapters.rows import Composition, Rows, height, whole
from magmerge.checkpoints.adapters.translation import compose, in_memory, rename_content
from magmerge.checkpoints.clip import families
from magmerge.checkpoints.names import ldm
from magmerge.core.components import FLUX_BARE, PREFIXES, component_of, layout_of
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming
from magmerge.core.version import __version__

WEIGHT = ".weight"
_ENCODERS = ("transformer.", "model.")
"""What a single file puts before the names inside a text encoder: transformers', open_clip's."""
_OPEN_CLIP, _HF = map(families.ClipNames, (families.OPEN_CLIP, families.HF))


def nameless(base: Checkpoint, tensors: Collection[str], naming: Naming) -> frozenset[str]:
    """Those of the base's `tensors` that an adapter under `naming` has no name for.

    PEFT's modules are called as the base calls them. AdapterError where none has a name.
    """
    if naming == "peft":
        return frozenset()
    rows = rows_of(base)
    modules = {}
    for name, own in rows.items():
        shape = (height(own), *base.specs[own[0].module or ""].shape[1:])
        modules[name] = ModuleSpec(name, "linear", shape, 1, 1.0, "F32")
    reached = from_diffusers(naming, modules).rows.values()
    known = {part.module for own in reached for part in own}
    named = {part.module for name in known if name is not None for part in rows[name]}
    without = frozenset(name for name in tensors if name not in named)
    if len(without) == len(tensors):
        raise AdapterError(
            f"{naming} has no names for its modules, which are no such part of a diffusion model",
            source=base.source,
            remedy="write a PEFT folder: drop --format (naming=)",
        )
    return without


class OnBase(NamedTuple):
    """A module's factors, what kind it is, and whether the base stores it as [in, out]."""

    factors: LowRank
    kind: ModuleKind
    turned: bool


def content_of(base: Checkpoint, modules: Mapping[str, OnBase], naming: Naming) -> Content:
    """The adapter of these modules under `naming`, which has a name for each of them."""
    turned = [module.turned for module in modules.values() if module.kind == "linear"]
    path = base.source if base.folder is None else str(base.folder)
    content = Content(
        naming="peft",
        modules={name: module.factors for name, module in modules.items()},
        kinds={name: module.kind for name, module in modules.items()},
        metadata={"magmerge": __version__},
        # One value is all that the configuration has, and readers that know the base need none:
        # it is set only where it holds for every matrix.
        config={
            "base_model_name_or_path": path if base.files else None,
            "fan_in_fan_out": bool(turned) and all(turned),
        },
    )
    return content if naming == "peft" else _diffusion(base, content, naming)


def _diffusion(base: Checkpoint, content: Content, naming: Naming) -> Content:
    """The adapter of a part of a diffusion model, whose file may fuse what others keep apart."""
    composition = Composition()
    for name, own in rows_of(base).items():
        rows = [
            part._replace(module=module if module in content.modules else None)
            for part in own
            for module in ((part.module or "").removesuffix(WEIGHT),)
        ]
        if any(part.module is not None for part in rows):
            composition.add(name, rows)
    adapter = compose(in_memory(content), composition, "diffusers")
    return rename_content(
        Content(
            naming="diffusers",
            modules={name: adapter.read(name) for name in adapter.modules},
            kinds={name: module.kind for name, module in adapter.modules.items()},
            metadata=content.metadata,
        ),
        naming,
    )


def rows_of(base: Checkpoint) -> dict[str, tuple[Rows, ...]]:
    """The base's tensors as diffusers' modules, with the component first: unet.conv_in.

    Each module's rows in order, `Rows.module` being the tensor's name; several modules are rows of
    one tensor where the base fuses them. Empty where it is no part of a diffusion model.
    """
    composition = Composition()
    of_table = _of_table(base, composition)
    for name, component, inner in _inside(base):
        spec = base.specs[name]
        if len(spec.shape) < 2 or name in of_table:
            continue
        module = ModuleSpec(name, "linear", spec.shape, 0, 1.0, spec.dtype)
        own = inner.removesuffix(WEIGHT)
        theirs: str | None = None
        if is_text(component):
            prefix = next((start for start in _ENCODERS if inner.startswith(start)), "")
            layer = _in_layer(inner.removeprefix(prefix), module)
            for part, rows in layer.items():
                composition.add(f"{component}.{part}", (rows,))
            theirs = None if layer else canonical(own.removeprefix(prefix))
        elif component == "unet":
            theirs = own if UNET.has(own) else ldm.to_diffusers(own)
        elif inner.endswith(WEIGHT):
            fused = flux.split(name, flat(own), module, composition, "transformer.")
            theirs = own if not fused and TRANSFORMER.has(own) else None
        if theirs is not None and inner.endswith(WEIGHT):
            composition.add(f"{component}.{theirs}", whole(name, module))
    return composition.rows


def _of_table(base: Checkpoint, composition: Composition) -> Collection[str]:
    """Put into `composition` the layers of a model that a table knows; the names of its tensors."""
    slots = tensor_slots(base.specs)
    modules = {
        name: ModuleSpec(name, "linear", spec.shape, 0, 1.0, spec.dtype)
        for name, spec in base.specs.items()
        if name in slots and name.endswith(WEIGHT) and len(spec.shape) > 1
    }
    own = {
        name: tuple(slot._replace(part=slot.part.replace(WEIGHT, "", 1)) for slot in slots[name])
        for name in modules
        if name not in base.ties
    }
    add_rows(modules, own, composition)
    return slots


def _inside(base: Checkpoint) -> Iterator[tuple[str, str, str]]:
    """Each tensor's name, the component of a diffusion model that it is in, its name in there."""
    layout = layout_of(base.specs)
    single = _lone_component(base) if layout is None else None
    for name in base.specs:
        if name in base.ties:
            continue
        component = component_of(name, layout)
        if single is not None:
            yield name, single, name
        elif layout is not None and component is not None and component != "vae":
            prefix = next(start for start, _ in PREFIXES[layout] if name.startswith(start))
            bare = layout == "flux" and prefix in FLUX_BARE
            yield name, component, name if bare else name.removeprefix(prefix)


def _lone_component(base: Checkpoint) -> str | None:
    """What a model of one component is; None for any that is no part of a diffusion model."""
    parts = (lone(name.removesuffix(".weight")) for name in base.specs)
    part = next((part for part in parts if part is not None), None)
    if part is None:
        of_t5 = any(name.startswith("encoder.block.") for name in base.specs)
        return "text_encoder_2" if of_t5 else None
    # The second CLIP of SDXL, and not the first one, projects its output.
    if part.component == "text_encoder" and "text_projection.weight" in base.specs:
        return "text_encoder_2"
    return part.component


def _in_layer(inner: str, spec: ModuleSpec) -> dict[str, Rows]:
    """CLIP's modules, and their rows, that a tensor in a layer of open_clip's encoder holds."""
    entry = _OPEN_CLIP.entry(inner)
    if entry is None or not families.is_weight(entry) or spec.shape[0] % len(entry.parts):
        return {}
    height = spec.shape[0] // len(entry.parts)
    names = [(_HF.name_of(part) or "").removesuffix(WEIGHT) for part in entry.parts]
    return {
        name: Rows(spec.name, place * height, (place + 1) * height)
        for place, name in enumerate(names)
    }
