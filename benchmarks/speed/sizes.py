"""Shapes of Llama models of several sizes. Needs no torch to import."""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class Size(NamedTuple):
    """The numbers that make a Llama model's shapes."""

    layers: int
    hidden: int = 1024
    inner: int = 2816
    tokens: int = 32000
    heads: int = 16


SIZES = {"tiny": Size(2, 64, 176, 320, 4), "0.35": Size(22), "1.3": Size(96)}
"""By billions of parameters. Two differ in their number of layers alone: that is what one more
parameter costs. The tiny one is for start-up."""


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama model."""
    width, inner = size.hidden, size.inner
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.tokens, width)}
    for i in range(size.layers):
        name = f"model.layers.{i}."
        for part in "qkvo":
            found[f"{name}self_attn.{part}_proj.weight"] = (width, width)
        for part in ("gate", "up"):
            found[f"{name}mlp.{part}_proj.weight"] = (inner, width)
        found[f"{name}mlp.down_proj.weight"] = (width, inner)
        for part in ("input", "post_attention"):
            found[f"{name}{part}_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (size.tokens, width)}


def parameters(size: Size) -> int:
    """How many entries a model has."""
    return sum(map(prod, shapes(size).values()))
