"""From llama.cpp's names of tensors to those of transformers, by architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

PLAIN = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
FEED_FORWARD = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ONE_NORM = {"ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
USUAL = {**ATTENTION, **FEED_FORWARD, **ONE_NORM}


class Architecture(NamedTuple):
    """How llama.cpp writes a family of models: the names in a block (`{}` stands for an expert's
    number, where all of them are one tensor), whether the rows of query and key are in another
    order, and what it adds to the weights of norms.
    """

    blocks: Mapping[str, str]
    turned: bool = False
    shift: float = 0.0


ARCHITECTURES = {
    "llama": Architecture({**USUAL, **MIXTRAL}, turned=True),
    "mistral3": Architecture(USUAL, turned=True),
    "qwen2": Architecture(USUAL),
    "qwen3": Architecture(USUAL),
    "qwen2moe": Architecture({**USUAL, **QWEN_EXPERTS, **SHARED_EXPERT}),
    "qwen3moe": Architecture({**USUAL, **QWEN_EXPERTS}),
    "gemma": Architecture(USUAL, shift=1.0),
    "gemma2": Architecture({**ATTENTION, **FEED_FORWARD, **FOUR_NORMS}, shift=1.0),
    "gemma3": Architecture({**ATTENTION, **FEED_FORWARD, **FOUR_NORMS}, shift=1.0),
    "phi3": Architecture({**USUAL, **FUSED}),
}
"""By the value of general.architecture. Mistral's and Mixtral's models are written as llama."""
OWN_NAMES = frozenset(
    {
        "flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan",
        "lumina2", "qwen_image",
    }
)  # fmt: skip
"""Diffusion models, which ComfyUI-GGUF writes under their own names."""
COMPUTED = re.compile(r"(?:blk\.\d+\.)?rope_(?:freqs|factors_long|factors_short)\.weight")
"""Tables that transformers computes from a config."""
BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
ONE_ROW = frozenset({"ffn_gate_inp_shexp"})
"""Matrices of one row, which llama.cpp writes as vectors."""
TURNED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""The tensors whose rows are in another order, and what tells of how many heads they are."""


class Part(NamedTuple):
    """A tensor of transformers' as the file has it: a tensor of it, or the entries of one that
    begin at `start`; of so many heads, whose rows are turned (0: they are not); and what is added.
    """

    stored: str
    shape: tuple[int, ...]
    start: int = 0
    heads: int = 0
    shift: float = 0.0


def parts_of(
    name: str, shape: tuple[int, ...], kind: Architecture, facts: Mapping[str, Any]
) -> dict[str, Part]:
    """What a tensor of the file is to transformers: by name, several where it holds experts. Empty
    where it has no name there; ValueError where the file does not say what it needs to.
    """
    stem, _, last = name.rpartition(".")
    shift = kind.shift if stem.endswith("norm") and last == "weight" else 0.0
    if stem in PLAIN:
        return {f"{PLAIN[stem]}.{last}": Part(name, shape, shift=shift)}
    match = BLOCK.fullmatch(name)
    if match is None or match[2] not in kind.blocks:
        return {}
    own = f"model.layers.{match[1]}.{kind.blocks[match[2]]}.{last}"
    if "{}" in own:
        size = 1
        for length in shape[1:]:
            size *= length
        return {
            own.format(number): Part(name, shape[1:], number * size)
            for number in range(shape[0] if len(shape) == 3 else 0)
        }
    if match[2] in ONE_ROW and len(shape) == 1:
        shape = (1, *shape)
    heads = _heads(match[2], shape, facts) if kind.turned and match[2] in TURNED else 0
    return {own: Part(name, shape, heads=heads, shift=shift)}


def _heads(stem: str, shape: tuple[int, ...], facts: Mapping[str, Any]) -> int:
    """Of how many heads the rows of a query or key are."""
    architecture = facts.get("general.architecture")
    keys = [f"{architecture}.{TURNED[stem]}", f"{architecture}.{TURNED['attn_q']}"]
    heads = next((facts[key] for key in keys if key in facts), None)
    if not isinstance(heads, int) or heads < 1 or not shape or shape[0] % (2 * heads):
        raise ValueError(f"{keys[0]} is {heads}, and {stem} has {shape[0] if shape else 0} rows")
    return heads
