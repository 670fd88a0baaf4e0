"""Which token embedding is a model's output head too, and what the head is called if it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

WITH_A_HEAD = (
    "ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration", "ForMaskedLM",
    "ForPreTraining",
)  # fmt: skip
"""What the names of transformers' classes end in that predict tokens."""

HEADS = {
    "model.embed_tokens.weight": "lm_head.weight",
    "model.language_model.embed_tokens.weight": "lm_head.weight",
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "model.text_model.embed_tokens.weight": "lm_head.weight",
    "model.decoder.embed_tokens.weight": "lm_head.weight",
    "transformer.wte.weight": "lm_head.weight",
    "transformer.word_embeddings.weight": "lm_head.weight",
    "transformer.tokens_embed.weight": "lm_head.weight",
    "backbone.embeddings.weight": "lm_head.weight",
    "gpt_neox.embed_in.weight": "lm_head.weight",
    "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
    "roberta.embeddings.word_embeddings.weight": "lm_head.decoder.weight",
}
"""What transformers calls the head of a model whose token embedding has this name."""
ELSEWHERE = frozenset(
    {
        "biogpt", "canary", "cohere_asr", "kyutai_speech_to_text", "moonshine",
        "moonshine_streaming", "t5gemma", "t5gemma2", "trocr", "whisper",
    }
)  # fmt: skip
"""Types of models whose embedding has a name of the above, and whose head has another."""


SCALED = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"})
"""Types of models whose head is the embedding times d_model ** -0.5 where they are one."""


BIASES = {".decoder.weight": (".decoder.bias", ".bias")}
"""Endings of heads whose bias has a second name where they are no embedding, and its first."""


class Head(NamedTuple):
    """A token embedding that is the output head too, and the name of that head where it is not."""

    embedding: str
    name: str

    @property
    def copies(self) -> dict[str, str]:
        """The tensors that the head is made of, each by what it is a copy of."""
        copies = {self.name: self.embedding}
        for ending, (second, first) in BIASES.items():
            if self.name.endswith(ending):
                stem = self.name.removesuffix(ending)
                copies[f"{stem}{second}"] = f"{stem}{first}"
        return copies


def head_of(checkpoint: Checkpoint) -> Head | None:
    """The model's head that is its embedding; None where there is none or its name is not known.

    A model whose head is a scaled embedding (T5 and its kin) has none that a plain copy would be,
    nor has one whose encoder and decoder share the embedding (BART and its kin).
    """
    shared = shared_embeddings(checkpoint)
    config = read_model_config(checkpoint)
    if len(shared) != 1 or config.get("model_type") in ELSEWHERE:
        return None
    embedding = next(iter(shared))
    stored = [name for name, other in checkpoint.ties.items() if other == embedding]
    name = HEADS.get(embedding)
    return None if name is None or (stored and name not in stored) else Head(embedding, name)


def inseparable(checkpoint: Checkpoint) -> bool:
    """Whether the model computes otherwise where head and embedding are two, or has the embedding
    in an encoder and a decoder too.
    """
    of_both = any(name.endswith("shared.weight") for name in shared_embeddings(checkpoint))
    return of_both or read_model_config(checkpoint).get("model_type") in SCALED


def shared_embeddings(checkpoint: Checkpoint) -> frozenset[str]:
    """The token embeddings that are the output head too; none where the head is stored apart.
    Config or memory tell it.
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
    classes, predicts = config.get("architectures"), config.get("tie_word_embeddings") is True
    if isinstance(classes, list) and classes:
        predicts = any(str(name).endswith(WITH_A_HEAD) for name in classes)
    apart = any(kinds[name] == "head" for name in rows)
    return frozenset(tied | embeddings if predicts and not apart else tied)


def _tokens(config: Mapping[str, Any], matrices: Mapping[str, TensorSpec]) -> int | None:
    """How many tokens the model has: as its config says, if there is a matrix of so many rows."""
    inner = config.get("text_config")
    parts = [config, *([inner] if isinstance(inner, dict) else [])]
    rows = {spec.shape[0] for spec in matrices.values()}
    sizes = [part.get("vocab_size") for part in parts]
    return next((size for size in sizes if isinstance(size, int) and size in rows), None)
