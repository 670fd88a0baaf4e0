"""A base's tensors under diffusers' names for their modules, whatever layout its file has."""

from __future__ import annotations

from collections.abc import Iterator

from magmerge.checkpoints.adapters.names import flux, ldm, open_clip
from magmerge.checkpoints.adapters.names.assembly import Assembly, Rows, whole
from magmerge.checkpoints.adapters.names.components import canonical, is_text, told
from magmerge.checkpoints.adapters.names.flat import flat
from magmerge.checkpoints.adapters.names.vocabulary import TRANSFORMER, UNET
from magmerge.checkpoints.adapters.nouns import ModuleSpec
from magmerge.core.components import FLUX_BARE, PREFIXES, component_of, layout_of
from magmerge.core.models import Checkpoint

_ENCODERS = ("transformer.", "model.")
"""What a single file puts before the names inside a text encoder: transformers', open_clip's."""


def rows_of(base: Checkpoint) -> dict[str, tuple[Rows, ...]]:
    """The base's tensors as diffusers' modules, with the component first: unet.conv_in.

    Each module's rows in order, `Rows.module` being the tensor's name; several modules are rows of
    one tensor where the base fuses them. Empty where it is no part of a diffusion model.
    """
    assembly = Assembly()
    for name, component, inner in _inside(base):
        spec = base.specs[name]
        if len(spec.shape) < 2:
            continue
        module = ModuleSpec(name, "linear", spec.shape, 0, 1.0, spec.dtype)
        if is_text(component):
            _add_text_module(inner, component, module, assembly)
        elif inner.endswith(".weight"):
            _add_image_module(inner.removesuffix(".weight"), component, module, assembly)
    return assembly.rows


def _add_text_module(inner: str, component: str, module: ModuleSpec, assembly: Assembly) -> None:
    prefix = next((one for one in _ENCODERS if inner.startswith(one)), "")
    inner = inner.removeprefix(prefix)
    fused = open_clip.split(module.name, inner, module, assembly, f"{component}.")
    if not fused and inner.endswith(".weight"):
        own = canonical(inner.removesuffix(".weight"))
        assembly.add(f"{component}.{own}", whole(module.name, module))


def _add_image_module(inner: str, component: str, module: ModuleSpec, assembly: Assembly) -> None:
    if component == "unet":
        theirs = inner if UNET.has(inner) else ldm.to_diffusers(inner)
        if theirs is not None:
            assembly.add(f"unet.{theirs}", whole(module.name, module))
        return
    fused = flux.split(module.name, flat(inner), module, assembly, "transformer.")
    if not fused and TRANSFORMER.has(inner):
        assembly.add(f"transformer.{inner}", whole(module.name, module))


def _inside(base: Checkpoint) -> Iterator[tuple[str, str, str]]:
    """Each tensor's name, the component of a diffusion model that it is in, its name in there."""
    layout = layout_of(base.specs)
    lone = _lone_component(base) if layout is None else None
    for name in base.specs:
        if name in base.ties:
            continue
        component = component_of(name, layout)
        if lone is not None:
            yield name, lone, name
        elif layout is not None and component is not None and component != "vae":
            prefix = next(one for one, _ in PREFIXES[layout] if name.startswith(one))
            bare = layout == "flux" and prefix in FLUX_BARE
            yield name, component, name if bare else name.removeprefix(prefix)


def _lone_component(base: Checkpoint) -> str | None:
    """What a model of one component is; None for any that is no part of a diffusion model."""
    parts = (told(name.removesuffix(".weight")) for name in base.specs)
    part = next((part for part in parts if part is not None), None)
    if part is None:
        of_t5 = any(name.startswith("encoder.block.") for name in base.specs)
        return "text_encoder_2" if of_t5 else None
    # The second CLIP of SDXL, and not the first one, projects its output.
    if part.component == "text_encoder" and "text_projection.weight" in base.specs:
        return "text_encoder_2"
    return part.component
