"""Small inputs for one forward pass, by the names of its parameters and its config's sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TOKENS, FRAMES, SAMPLES = 8, 64, 4000
"""Tokens of a text, frames and samples of a sound."""


def inputs_for(model: nn.Module) -> dict[str, Any] | None:
    """Inputs by name; None where the model's main input is none of those known."""
    inner: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    names = list(inspect.signature(inner.forward).parameters)
    config = getattr(inner, "config", None)
    if config is None and hasattr(inner, "default_cfg"):
        return {names[0]: torch.rand(1, *inner.default_cfg["input_size"])}
    if config is None and hasattr(inner, "context_length"):
        return _of_open_clip(inner)
    main = getattr(inner, "main_input_name", None) or next(iter(names), "")
    known = [name for name in names if name in MAKERS]
    if main not in known:
        return None
    # diffusers' configs are mappings; a model of text and images takes both.
    always = ALWAYS | (OF_DIFFUSERS if isinstance(config, dict) else set())
    always |= {"input_ids", "pixel_values"} if hasattr(config, "vision_config") else set()
    return {name: MAKERS[name](config) for name in known if name == main or name in always}


def _of_open_clip(model: Any) -> dict[str, Any]:
    side = model.visual.image_size
    height, width = side if isinstance(side, tuple) else (side, side)
    text = torch.arange(model.context_length)[None] % model.vocab_size
    return {"image": torch.rand(1, 3, height, width), "text": text}


def _size(config: Any, *names: str, default: int = 1) -> int:
    """The first of a config's sizes, also of its parts for text, images and sound."""
    parts = [config, *(getattr(config, f"{p}_config", None) for p in ("text", "vision", "audio"))]
    for part in parts:
        for name in names:
            value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
            value = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default


def _tokens(config: Any) -> Tensor:
    least = min(_size(config, "vocab_size", default=TOKENS), 1000)
    length = min(TOKENS, _size(config, "max_position_embeddings", "n_positions", default=TOKENS))
    return torch.arange(length)[None] % least


def _pixels(config: Any) -> Tensor:
    side = _size(config, "image_size", default=32)
    return torch.rand(1, _size(config, "num_channels", default=3), side, side)


def _features(config: Any) -> Tensor:
    frames = 2 * _size(config, "max_source_positions", default=FRAMES // 2)
    return torch.rand(1, _size(config, "num_mel_bins", default=80), frames)


def _latents(config: Any) -> Tensor:
    side = _size(config, "sample_size", default=16)
    return torch.rand(1, _size(config, "in_channels", default=4), side, side)


def _context(config: Any) -> Tensor:
    width = _size(config, "cross_attention_dim", "joint_attention_dim", "caption_channels")
    return torch.rand(1, TOKENS, width)


MAKERS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": lambda config: _tokens(config)[:, :2],
    "pixel_values": _pixels,
    "input_features": _features,
    "input_values": lambda _: torch.rand(1, SAMPLES),
    "sample": _latents,
    "hidden_states": _latents,
    "timestep": lambda _: torch.tensor([1]),
    "encoder_hidden_states": _context,
    "pooled_projections": lambda config: torch.rand(1, _size(config, "pooled_projection_dim")),
}
ALWAYS = frozenset({"decoder_input_ids", "timestep"})
OF_DIFFUSERS = frozenset({"encoder_hidden_states", "pooled_projections"})
