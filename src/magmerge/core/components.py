"""Which part of a diffusion model a tensor belongs to, where one file holds several parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

Component = Literal["unet", "transformer", "text_encoder", "text_encoder_2", "vae"]
"""A part of a diffusion model, by the name of its folder in diffusers' layout."""

Layout = Literal["sd1", "sd2", "sdxl", "flux", "diffusers", "kohya"]
"""How one file names the parts of a diffusion model.

The first four are whole models: sd2 differs from sd1 in its text encoder, which is open_clip's. A
file that lacks a part, a UNet without text encoder for example, has the layout too; a lone UNet of
SD2 passes for sd1, whose UNet has the same names. diffusers and kohya are the namings of adapters.
"""

COMPONENTS: tuple[Component, ...] = get_args(Component)
DIFFUSION = "model.diffusion_model."
FLUX_BLOCKS = ("double_blocks.", "single_blocks.")
FLUX_BARE = (
    *FLUX_BLOCKS,
    "img_in.",
    "txt_in.",
    "time_in.",
    "vector_in.",
    "guidance_in.",
    "final_layer.",
)
"""What names begin with in Flux' own file, which holds the transformer alone."""

_STABLE_DIFFUSION: tuple[tuple[str, Component], ...] = (
    (DIFFUSION, "unet"),
    ("cond_stage_model.", "text_encoder"),
    ("conditioner.embedders.0.", "text_encoder"),
    ("conditioner.embedders.1.", "text_encoder_2"),
    ("first_stage_model.", "vae"),
)
_FLUX: tuple[tuple[str, Component], ...] = (
    (DIFFUSION, "transformer"),
    *((bare, "transformer") for bare in FLUX_BARE),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.t5xxl.", "text_encoder_2"),
    ("vae.", "vae"),
)
_DIFFUSERS: tuple[tuple[str, Component], ...] = tuple(
    (f"{component}.", component) for component in COMPONENTS
)
_KOHYA: tuple[tuple[str, Component], ...] = (
    ("lora_unet_double_blocks_", "transformer"),
    ("lora_unet_single_blocks_", "transformer"),
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_2"),
)
PREFIXES: dict[Layout, tuple[tuple[str, Component], ...]] = {
    "sd1": _STABLE_DIFFUSION,
    "sd2": _STABLE_DIFFUSION,
    "sdxl": _STABLE_DIFFUSION,
    "flux": _FLUX,
    "diffusers": _DIFFUSERS,
    "kohya": _KOHYA,
}
"""What the names of each part begin with; the first that fits tells."""

_TOLD_BY: tuple[tuple[Layout, tuple[str, ...]], ...] = (
    ("flux", (*FLUX_BLOCKS, *(f"{DIFFUSION}{block}" for block in FLUX_BLOCKS))),
    ("sdxl", ("conditioner.embedders.", f"{DIFFUSION}label_emb.")),
    ("sd2", ("cond_stage_model.model.",)),
    ("sd1", (f"{DIFFUSION}input_blocks.", f"{DIFFUSION}output_blocks.", "cond_stage_model.")),
    # A language model too may call a part of itself transformer.
    (
        "diffusers",
        (
            "unet.",
            "transformer.transformer_blocks.",
            "transformer.single_transformer_blocks.",
            "text_encoder.text_model.",
        ),
    ),
    ("kohya", ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")),
)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout that these tensors' or modules' names are in; None for any other model's."""
    names = list(names)
    layouts = (layout for layout, told in _TOLD_BY if any(name.startswith(told) for name in names))
    return next(layouts, None)


def component_of(name: str, layout: Layout | None) -> Component | None:
    """The part that a tensor belongs to; None for what is beside them, and without a layout."""
    if layout is None:
        return None
    parts = (part for prefix, part in PREFIXES[layout] if name.startswith(prefix))
    return next(parts, None)


def components_of(names: Iterable[str]) -> Counter[Component]:
    """The parts that a model has, with the number of tensors of each."""
    names = list(names)
    layout = layout_of(names)
    return Counter(part for name in names if (part := component_of(name, layout)) is not None)
