"""The models of a diffusion pipeline, and which of them a module belongs to."""

from __future__ import annotations

import re
from typing import NamedTuple

from magmerge.checkpoints.adapters.names.vocabulary import CLIP, T5, TRANSFORMER, UNET, Language

COMPONENTS = (
    "unet",
    "transformer",
    "transformer_2",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
)
"""What diffusers calls the models of a pipeline that adapters are trained on."""

_BARE_CLIP = re.compile(r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


class Part(NamedTuple):
    """A module of one of a pipeline's models: `name` is its name in that model."""

    component: str
    name: str

    def __str__(self) -> str:
        return f"{self.component}.{self.name}"


def is_text(component: str) -> bool:
    """Whether the model encodes text."""
    return component.startswith("text_encoder")


def told(name: str) -> Part | None:
    """The module `name` of a lone model, whose kind its name tells; None where it does not."""
    if UNET.has(name):
        return Part("unet", name)
    if TRANSFORMER.has(name):
        return Part("transformer", name)
    if CLIP.has(name) or _BARE_CLIP.fullmatch(name):
        return Part("text_encoder", canonical(name))
    return None


def prefixed(name: str) -> Part | None:
    """The module of a name that begins with the model's; None for any other."""
    component, _, rest = name.partition(".")
    if component not in COMPONENTS or not rest:
        return None
    return Part(component, canonical(rest) if is_text(component) else rest)


def surely_prefixed(name: str) -> Part | None:
    """The same only where the rest is known to be such a model's module.

    transformer.h.0.attn is a module of GPT-2.
    """
    part = prefixed(name)
    if part is None or not any(language.has(part.name) for language in _languages(part)):
        return None
    return part


def _languages(part: Part) -> tuple[Language, ...]:
    if is_text(part.component):
        return CLIP, T5
    if part.component == "prior":
        return UNET, TRANSFORMER
    return (UNET,) if part.component == "unet" else (TRANSFORMER,)


def canonical(name: str) -> str:
    """A text encoder's module: newer versions of transformers leave out text_model."""
    return f"text_model.{name}" if _BARE_CLIP.fullmatch(name) else name
