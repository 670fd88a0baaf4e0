"""What a tensor is to its model, told from its header and its model's configuration; and whether
the output head and the token embedding are one matrix, stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError
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
CONV1D = {
    "gpt2": frozenset({"c_attn", "q_attn", "c_proj", "c_fc"}),
    "openai-gpt": frozenset({"c_attn", "c_proj", "c_fc"}),
    "imagegpt": frozenset({"c_attn", "q_attn", "c_proj", "c_fc"}),
    "decision_transformer": frozenset({"c_attn", "q_attn", "c_proj", "c_fc"}),
}
"""Model types whose linear layers are stored as [in, out], and these layers' names."""
WITH_A_HEAD = (
    "ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration", "ForMaskedLM",
    "ForPreTraining",
)  # fmt: skip
"""What the names of transformers' classes end in that predict tokens."""


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
    if _has_a_row_for_each_token(spec, config):
        return "embedding"
    if _module(path) in CONV1D.get(str(config.get("model_type")), ()):
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


def _has_a_row_for_each_token(spec: TensorSpec, config: Mapping[str, Any]) -> bool:
    """Rows as many as tokens, where that number cannot be another dimension of the model."""
    tokens = config.get("vocab_size")
    others = [config[key] for key in config if key.endswith("size") and key != "vocab_size"]
    return tokens == spec.shape[0] and tokens not in others


def _is_statistics(spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> bool:
    """torch's batch norms store a mean and a variance beside each other, under fixed names."""
    layer, _, last = spec.name.rpartition(".")
    prefix = f"{layer}." if layer else ""
    return last in ("running_mean", "running_var") and all(
        specs.get(f"{prefix}{name}", spec).shape == spec.shape and f"{prefix}{name}" in specs
        for name in ("running_mean", "running_var")
    )


def shared_embeddings(checkpoint: Checkpoint) -> frozenset[str]:
    """The token embeddings that are the output head too; none where the head is stored apart.

    Config or memory tell it: a class that predicts tokens, and no head with a row for each token.
    """
    config = read_model_config(checkpoint)
    kinds = kinds_of(checkpoint, config)
    tied = {
        stored
        for name, stored in checkpoint.ties.items()
        if {kinds[name], kinds[stored]} == {"embedding", "head"}
    }
    matrices = {name: spec for name, spec in checkpoint.specs.items() if len(spec.shape) == 2}
    tokens = _tokens(config, matrices)
    rows = {name for name, spec in matrices.items() if spec.shape[0] == tokens}
    # Of positions there may be as many as tokens.
    tables = {name for name in rows if kinds[name] == "embedding" and "position" not in name}
    embeddings = {name for name in tables if "wpe" not in name.split(".")}
    if not _predicts_tokens(config) or any(kinds[name] == "head" for name in rows):
        return frozenset(tied)
    return frozenset(tied | embeddings)


def _predicts_tokens(config: Mapping[str, Any]) -> bool:
    classes = config.get("architectures")
    if isinstance(classes, list) and classes:
        return any(str(name).endswith(WITH_A_HEAD) for name in classes)
    return config.get("tie_word_embeddings") is True


def _tokens(config: Mapping[str, Any], matrices: Mapping[str, TensorSpec]) -> int | None:
    """How many tokens the model has: as its config says, if there is a matrix of so many rows."""
    inner = config.get("text_config")
    parts = [config, *([inner] if isinstance(inner, dict) else [])]
    rows = {spec.shape[0] for spec in matrices.values()}
    sizes = [part.get("vocab_size") for part in parts]
    return next((size for size in sizes if isinstance(size, int) and size in rows), None)
