"""Whether a model's output head and its token embedding are one matrix, stored once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

WITH_A_HEAD = (
    "ForCausalLM",
    "LMHeadModel",
    "WithLMHead",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
)
"""What the names of transformers' classes end in that predict tokens."""


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
    embeddings = {name for name in rows if kinds[name] == "embedding" and not _of_places(name)}
    if not _predicts_tokens(config) or any(kinds[name] == "head" for name in rows):
        return frozenset(tied)
    return frozenset(tied | embeddings)


def _of_places(name: str) -> bool:
    """Whether an embedding is of positions, of which there may be as many as tokens."""
    return "position" in name or "wpe" in name.split(".")


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
    said = [part.get("vocab_size") for part in parts]
    return next((one for one in said if isinstance(one, int) and one in rows), None)
