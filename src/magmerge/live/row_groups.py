"""Layers that are several in one, such as query, key and value: which rows belong to which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

Config = Mapping[str, Any]

SIDE_BY_SIDE = frozenset({"c_attn", "qkv", "Wqkv", "in_proj", "to_qkv", "qkv_proj", "attn_qkv"})
"""Names of layers that give query, key and value one after the other."""
BY_HEADS = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom", "persimmon"})
"""Model types whose `query_key_value` gives query, key and value of one head after the other."""
OTHERWISE = frozenset({"codegen", "gpt_bigcode"})
"""Model types that put them in another order under such a name: one factor for the layer."""
HALVES = frozenset({"gate_up_proj", "w12"})
"""Names of layers that give a gate and a value of the same size."""


def row_groups(layer: str, inputs: int, outputs: int, config: Config) -> Int[Tensor, "rows"] | None:
    """The part that each output row of the layer named `layer` belongs to; None for one part.

    Told by names and sizes that are in use; a fused layer that is not known so has one factor.
    """
    name = layer.rpartition(".")[2]
    if name in HALVES and outputs % 2 == 0:
        return _blocks([outputs // 2] * 2)
    if name == "query_key_value":
        return _query_key_value(outputs, config)
    if name not in SIDE_BY_SIDE or config.get("model_type") in OTHERWISE:
        return None
    if outputs == 3 * inputs:
        return _blocks([inputs] * 3)
    if name == "c_attn" and outputs == 2 * inputs:
        # The cross attention of GPT-2 gives key and value only.
        return _blocks([inputs] * 2)
    return _grouped_heads(outputs, config)


def _grouped_heads(outputs: int, config: Config) -> Tensor | None:
    """Query, key and value one after the other, with fewer heads for the last two."""
    heads, shared, size = _heads(config)
    if heads and size and outputs == (heads + 2 * shared) * size:
        return _blocks([heads * size, shared * size, shared * size])
    return None


def _query_key_value(outputs: int, config: Config) -> Tensor | None:
    heads, _, size = _heads(config)
    if not heads or not size:
        return None
    kind = config.get("model_type")
    if kind in BY_HEADS and outputs == 3 * heads * size:
        return torch.arange(outputs) // size % 3
    if kind == "falcon":
        return _falcon(outputs, heads, size, config)
    return _grouped_heads(outputs, config)


def _falcon(outputs: int, heads: int, size: int, config: Config) -> Tensor | None:
    """Queries of a group of heads, then their key, then their value."""
    if config.get("new_decoder_architecture"):
        groups = int(config.get("num_kv_heads") or heads)
    elif config.get("multi_query", True):
        groups = 1
    else:
        groups = heads
    queries = heads // groups
    if outputs != groups * (queries + 2) * size:
        return None
    place = torch.arange(outputs) // size % (queries + 2)
    return (place - queries + 1).clamp(min=0)


def _heads(config: Config) -> tuple[int, int, int]:
    """Query heads, key heads, and the size of a head; zeros where the config does not say."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    shared = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    size = int(config.get("head_dim") or (width // heads if heads else 0))
    return heads, shared, size


def _blocks(sizes: list[int]) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
