"""Mixtures that dense models go into: names of their tensors, and what their config.json says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from magmerge.checkpoints.donor import REMOVED
from magmerge.core.errors import ParameterError

PARTS = ("gate_proj", "up_proj", "down_proj")
"""The matrices of a dense MLP, as llama and its kin call them."""
BLOCK = frozenset(
    {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *("input_layernorm.weight", "post_attention_layernorm.weight"),
    }
)
"""What every block has beside its MLP."""
QKV = frozenset(f"self_attn.{part}_proj.bias" for part in "qkv")
HEADS = frozenset({"self_attn.q_norm.weight", "self_attn.k_norm.weight"})


class Shape(NamedTuple):
    """A kind of mixture. `names` are those of an expert's matrices in the order of PARTS, with the
    expert's number left open; `needed` and `optional` what a block has beside its mixture.
    """

    model_type: str
    classes: str
    router: str
    names: tuple[str, ...]
    needed: frozenset[str] = BLOCK
    optional: frozenset[str] = frozenset()
    shared: str = ""
    shared_gate: str = ""


SHAPES = {
    shape.model_type: shape
    for shape in (
        Shape(
            "mixtral",
            "Mixtral",
            "block_sparse_moe.gate.weight",
            tuple(f"block_sparse_moe.experts.{{}}.{name}.weight" for name in ("w1", "w3", "w2")),
        ),
        Shape(
            "qwen2_moe",
            "Qwen2Moe",
            "mlp.gate.weight",
            tuple(f"mlp.experts.{{}}.{part}.weight" for part in PARTS),
            optional=QKV,
            shared="mlp.shared_expert.{}.weight",
            shared_gate="mlp.shared_expert_gate.weight",
        ),
        Shape(
            "qwen3_moe",
            "Qwen3Moe",
            "mlp.gate.weight",
            tuple(f"mlp.experts.{{}}.{part}.weight" for part in PARTS),
            needed=BLOCK | HEADS,
            optional=QKV | {"self_attn.o_proj.bias"},
        ),
    )
}


class Dense(NamedTuple):
    """A kind of dense model: how its classes begin, the mixtures that it can go into, the first of
    which is the usual one, and what its library takes where its config.json is silent.
    """

    classes: str
    shapes: tuple[str, ...]
    silent: Mapping[str, Any]


_COMMON = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN = {
    **{"vocab_size": 151936, "max_position_embeddings": 32768},
    **{"bos_token_id": None, "eos_token_id": None, **_WINDOWS},
}
_LLAMA = {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}
HEAD_COUNT = "num_key_value_heads"
DENSE = {
    "llama": Dense(
        "Llama",
        ("mixtral", "qwen2_moe"),
        {**_COMMON, **_LLAMA, "max_position_embeddings": 2048, HEAD_COUNT: None},
    ),
    "mistral": Dense(
        "Mistral",
        ("mixtral", "qwen2_moe"),
        {**_COMMON, **_LLAMA, "max_position_embeddings": 131072, HEAD_COUNT: 8,
         "sliding_window": 4096},
    ),
    "qwen2": Dense("Qwen2", ("qwen2_moe",), {**_COMMON, **_QWEN, HEAD_COUNT: 32}),
    "qwen3": Dense(
        "Qwen3",
        ("qwen3_moe",),
        {**_COMMON, **_QWEN, HEAD_COUNT: 32, "head_dim": 128, "attention_bias": False},
    ),
}  # fmt: skip
"""The kinds of dense models by model_type. Their mixtures' libraries take other values for most of
what is silent, so that it has to be written out.
"""
THETA = 10000.0
"""The rotary embedding's base where no config says one."""


class Counts(NamedTuple):
    """Sizes of a mixture: blocks, experts that are routed, those for each token, the width of each
    MLP, and that of the shared one.
    """

    blocks: int
    experts: int
    chosen: int
    width: int
    shared: int


def shape_of(config: Mapping[str, Any], word: str | None, source: str) -> Shape:
    """The mixture that the base goes into: the one that is asked for, or its kind's usual one.

    ParameterError, with what is possible, where there is none.
    """
    kind = config.get("model_type")
    dense = DENSE.get(str(kind))
    if dense is None:
        told = f"its model_type is {kind!r}" if kind else "no config.json tells what model it is"
        possible = "; ".join(f"{name} into {' or '.join(DENSE[name].shapes)}" for name in DENSE)
        raise ParameterError(
            f"{told}, and no mixture for it is known",
            source=source,
            remedy=f"give a base and experts of one of these kinds, as folders: {possible}",
        )
    if word is not None and word not in dense.shapes:
        raise ParameterError(
            f"a {kind} model goes into no {word}",
            source=source,
            remedy=f"write shape: {' or '.join(dense.shapes)}, or leave shape out",
        )
    return SHAPES[word or dense.shapes[0]]


def told_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dense model's config with what its library takes where it is silent."""
    told = {**DENSE[config["model_type"]].silent, **config}
    if told.get(HEAD_COUNT) is None:
        told[HEAD_COUNT] = told["num_attention_heads"]
    return told


def windows_of(config: Mapping[str, Any], count: int) -> list[bool]:
    """Which of a dense model's blocks see only the tokens within its sliding window."""
    kind, told = config["model_type"], told_of(config)
    if told.get("sliding_window") is None or not told.get("use_sliding_window", kind == "mistral"):
        return [False] * count
    if kind == "mistral":
        return [True] * count
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == count:
        return [entry == "sliding_attention" for entry in types]
    first = told["max_window_layers"]
    return [isinstance(first, int) and number >= first for number in range(count)]


def settings_of(
    shape: Shape, config: Mapping[str, Any], counts: Counts, blocks: Collection[str]
) -> dict[str, Any]:
    """What the mixture's config.json says otherwise than the base's; `blocks` are the names of a
    block's tensors beside its MLP.
    """
    told = told_of(config)
    settings = {k: v for k, v in told.items() if k not in config or config[k] != v}
    rope = config.get("rope_parameters")
    if "rope_theta" not in config and not (isinstance(rope, dict) and "rope_theta" in rope):
        settings["rope_theta"] = THETA
    settings |= {
        "model_type": shape.model_type,
        "architectures": classes_of(shape, config),
        "num_experts_per_tok": counts.chosen,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    settings |= {"auto_map": REMOVED} if "auto_map" in config else {}
    windows = windows_of(config, counts.blocks)
    window = told["sliding_window"] if any(windows) else None
    if shape.model_type == "mixtral":
        return settings | {
            "num_local_experts": counts.experts,
            "intermediate_size": counts.width,
            "router_jitter_noise": 0.0,
            "sliding_window": window,
        }
    settings |= {
        "num_experts": counts.experts,
        "moe_intermediate_size": counts.width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": any(windows),
        "sliding_window": window,
    }
    if not shape.shared:
        return settings
    # Its library works these out from max_window_layers otherwise than that of the dense model.
    types = ["sliding_attention" if windowed else "full_attention" for windowed in windows]
    return settings | {
        "shared_expert_intermediate_size": counts.shared,
        "qkv_bias": not QKV.isdisjoint(blocks),
        "layer_types": types,
    }


def classes_of(shape: Shape, config: Mapping[str, Any]) -> list[str]:
    """The mixture's classes for those that a dense model's config names."""
    own = DENSE[config["model_type"]].classes
    told = config.get("architectures")
    names = [str(name) for name in told] if isinstance(told, list) and told else []
    kept = [f"{shape.classes}{name.removeprefix(own)}" for name in names if name.startswith(own)]
    return kept or [f"{shape.classes}ForCausalLM"]
