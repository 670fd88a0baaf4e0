"""What a tensor is to its model, told from its header and its model's configuration; and whether
it is quantised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, Fault, shortened
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

EMBEDDING_WORDS = frozenset({"embed", "embeds", "embedding", "embeddings", "wte", "wpe"})
EMBEDDINGS = frozenset({"shared", "relative_attention_bias", "cls_token", "mask_token"})
HEADS = frozenset(
    {"lm_head", "head", "heads", "classifier", "score", "embed_out", "qa_outputs", "decoder_head"}
)
HEAD_PARENTS = frozenset({"cls", "classifier", "classification_head"})
TOP_LEVEL_HEADS = frozenset({"fc", "_fc"})

RESTORE = "restore the model's config.json"
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
"""Layers that models of these types store as [in, out]."""
INTEGERS = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
PACKING = INTEGERS - {"I64", "U64"}
"""Formats that numbers of few bits are packed into."""
PACKED = frozenset(
    {
        "weight", "qweight", "q_weight", "weight_packed", "quantized_weight", "in_proj_weight",
        "W_q", "_data", "qdata", "weight:qdata", "_weight_qdata", "trellis", "Qidxs",
    }
)  # fmt: skip
"""Last parts of names of tensors that hold such numbers where they are integers."""
BESIDE = (".absmax", ".SCB", ".scale", "._scale", "_scale", "_scales", "_scale_inv", "_scale_2")
"""Endings, after an integer tensor's own name, of what its entries are multiplied with."""
MARKS = (
    (".SCB", "bitsandbytes, 8 bits"),
    (".weight.absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".qzeros", "GPTQ or AWQ"),
    (".suh", "EXL3"),
    (".centroids.weight", "VPTQ"),
)
"""Endings of names that nothing but a quantised model has."""
PAIRS = (("_blocks", "_scales"), (".B", ".s"), (".codes", ".codebooks"))
"""Endings of an integer tensor's name, and what stands in its place beside it: MXFP4, Marlin, AQLM.
"""
SOURCE = (
    "give the model that it was quantised from, in bfloat16, float16 or float32: an adapter that "
    "was trained on the quantised one fits that too"
)
"""What helps with every quantised model, none of which holds the weights that it was made from."""
WAYS_OUT = {
    "bitsandbytes": "; or load it with transformers and bitsandbytes, call its dequantize(), and "
    "save it with save_pretrained",
    "MLX": "; or let mlx_lm.convert --dequantize write it anew",
}
"""Further ways, by the kind."""
PLAIN = "; where its tensors are plain numbers all the same, remove that entry from its config.json"
PARAMETERS = ("weight", "bias", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
"""How the names of tensors end that a model trains."""
QUANTISATION = "quantization_config"
"""What a config calls it."""


def kinds_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Kind]:
    """The kind of every tensor: what its module's class says, else what header and config say."""
    return {
        name: checkpoint.kinds.get(name) or _kind(spec, checkpoint.specs, config)
        for name, spec in checkpoint.specs.items()
    }


def read_model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's config.json; empty where there is none. CheckpointError if it is corrupt."""
    return {} if checkpoint.folder is None else read_config(checkpoint.folder)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json; empty where there is none. CheckpointError if it is corrupt."""
    path = folder / "config.json"
    return read_json(path, RESTORE) if path.is_file() else {}


def read_json(
    path: Path, remedy: str, kind: type[CheckpointError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in a file; an error of that `kind` where it cannot be read or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise kind(f"cannot be read: {error}", source=path, remedy=remedy) from error
    if not isinstance(content, dict):
        raise kind("is no JSON object", source=path, remedy=remedy)
    return content


def check_gathered(checkpoint: Checkpoint) -> None:
    """CheckpointError where weights have no entries, as a rank of DeepSpeed's ZeRO-3 has them."""
    empty = [
        name
        for name, spec in checkpoint.specs.items()
        if spec.shape == (0,) and spec.dtype in dtypes.FLOATS and name.endswith(PARAMETERS)
    ]
    if empty:
        raise CheckpointError(
            f"{len(empty)} of its weights have no entries, as DeepSpeed's ZeRO-3 saves those that "
            f"were not gathered: {shortened(empty)}",
            source=checkpoint.source,
            remedy="save it again with stage3_gather_16bit_weights_on_model_save in DeepSpeed's "
            "config, or put the training's own checkpoint together: python zero_to_fp32.py "
            "CHECKPOINT OUT",
        )


def _kind(spec: TensorSpec, specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Kind:
    dimensions = len(spec.shape)
    if spec.dtype not in dtypes.FLOATS:
        return "buffer"
    if dimensions == 0:
        return "scalar"
    if dimensions == 1:
        return "statistics" if _is_statistics(spec, specs) else "vector"
    path = spec.name.split(".")
    if not _is_head(path) and _is_embedding(path) and (dimensions < 4 or path[-1] != "weight"):
        return "embedding"
    if dimensions == 2:
        return _matrix_kind(spec, path, config)
    if dimensions == 3 and "experts" in path:
        return "experts"
    return "convolution" if path[-1] == "weight" and spec.shape[0] > 1 else "other"


def _matrix_kind(spec: TensorSpec, path: list[str], config: Mapping[str, Any]) -> Kind:
    if _is_head(path):
        return "head"
    # Rows as many as tokens tell, where that number cannot be another dimension of the model.
    tokens = config.get("vocab_size")
    others = [config[key] for key in config if key.endswith("size") and key != "vocab_size"]
    if tokens == spec.shape[0] and tokens not in others:
        return "embedding"
    if _module(path) in CONV1D and config.get("model_type") in CONV1D_MODELS:
        return "transposed"
    return "other" if "table" in path[-1].split("_") else "matrix"


def _module(path: list[str]) -> str:
    """The last part of a tensor's path that names a module: not `weight`, not a number."""
    parts = [part for part in path if part != "weight" and not part.isdigit()]
    return parts[-1] if parts else ""


def _is_embedding(path: list[str]) -> bool:
    named = path[:-1] if path[-1] == "weight" and len(path) > 1 else path
    words = named[-1].split("_")
    return named[-1] in EMBEDDINGS or words[-1] in EMBEDDING_WORDS or words[0] == "embed"


def _is_head(path: list[str]) -> bool:
    if path[0] in TOP_LEVEL_HEADS and len(path) == 2:
        return True
    return _module(path) in HEADS or not HEAD_PARENTS.isdisjoint(path[:-1])


def _is_statistics(spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> bool:
    """torch's batch norms store a mean and a variance beside each other, under fixed names."""
    layer, _, last = spec.name.rpartition(".")
    prefix = f"{layer}." if layer else ""
    return last in ("running_mean", "running_var") and all(
        specs.get(f"{prefix}{name}", spec).shape == spec.shape and f"{prefix}{name}" in specs
        for name in ("running_mean", "running_var")
    )


def quantised_faults(models: Iterable[Checkpoint | None], layout: object = None) -> list[Fault]:
    """That models are quantised: their tensors tell it. Of the `layout` its config alone tells it
    too, which the result would get.
    """
    distinct = dict.fromkeys(model for model in models if model is not None)
    faults = [_fault(model, alone=model is layout) for model in distinct]
    return [fault for fault in faults if fault is not None]


def _fault(checkpoint: Checkpoint, *, alone: bool) -> Fault | None:
    declared = read_model_config(checkpoint).get(QUANTISATION)
    method = str(declared.get("quant_method", "")) if isinstance(declared, dict) else ""
    signs = quantisation_signs(checkpoint.specs)
    if signs:
        tensor, reason = next(iter(signs.items()))
        more = f" and {len(signs) - 1} more tensors" if len(signs) > 1 else ""
        kind = method or _kind_of(checkpoint.specs, signs)
        text = f"{checkpoint.source} is quantised: {tensor} ({reason}){more}"
        ways = (way for word, way in WAYS_OUT.items() if kind.startswith(word))
        return Fault(f"{text}; {kind}" if kind else text, SOURCE + next(ways, ""))
    if alone and declared and QUANTISATION not in getattr(checkpoint, "settings", {}):
        text = f"{checkpoint.source} is quantised ({QUANTISATION} in its config.json)"
        return Fault(text, SOURCE + PLAIN)
    return None


def _kind_of(specs: Mapping[str, TensorSpec], signs: Mapping[str, str]) -> str:
    """The name of the quantisation, where a tensor's name tells it; else an empty text."""
    kinds = {kind for _, kind in MARKS}
    words = [reason for reason in signs.values() if reason in kinds]
    if words:
        return words[0]
    name = next(iter(signs))
    module = name.removesuffix(".weight")
    beside = {f"{module}.scales", f"{module}.biases"} <= set(specs)
    return "MLX" if specs[name].dtype == "U32" and beside else ""


def quantisation_signs(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """The tensors that tell that a model is quantised, and how. Most such files carry no config."""
    reasons = {name: _quantisation(name, spec, specs) for name, spec in specs.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _quantisation(name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> str | None:
    four = "bitsandbytes, 4 bits" if ".quant_state." in name else None
    mark = four or next((kind for ending, kind in MARKS if name.endswith(ending)), None)
    if spec.dtype in dtypes.QUANTISED:
        return dtypes.torch_name(spec.dtype)
    if mark is not None or spec.dtype not in PACKING or math.prod(spec.shape) <= 1:
        return mark
    # An integer tensor may be a packed weight.
    pairs = [f"{name}{ending}" for ending in BESIDE]
    pairs += [f"{name.removesuffix(end)}{other}" for end, other in PAIRS if name.endswith(end)]
    beside = next((pair for pair in pairs if pair in specs), None)
    if beside is None and name.rpartition(".")[2] not in PACKED:
        return None
    where = "where weights are" if beside is None else f"beside {beside}"
    return f"{dtypes.torch_name(spec.dtype)} {where}"
