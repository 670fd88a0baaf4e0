"""Which tensors have a row for each token, as their kinds, names and the model's config tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from magmerge.checkpoints.kinds import kinds_of
from magmerge.checkpoints.tokens.rows import row_axis
from magmerge.core.models import Checkpoint

TABLES = (
    "embed_tokens", "word_embeddings", "wte", "embed_in", "tok_embeddings", "shared",
    "token_embedding", "tokens_embed", "embed_tokens_per_layer",
)  # fmt: skip
"""What the names of tables of tokens end in."""
HEADS = (
    "lm_head",
    "embed_out",
    "output",
    "predictions.decoder",
    "vocab_projector",
    "lm_head.decoder",
)
"""What the names of heads end in that give a score for each token."""
BIASES = ("lm_head.bias", "predictions.bias", "final_logits_bias", "output_bias", "embed_out.bias")
"""What the names of these heads' biases end in, beside their own name and `.bias`."""
OTHERS = ("position", "token_type", "wpe", "relative_attention")
"""Parts of the names of other tables, which may have as many rows."""
SIZE = "vocab_size"


def token_tensors(layout: Checkpoint, config: Mapping[str, Any]) -> dict[str, int]:
    """The tensors of a model that have a row for each token, with how many rows they have."""
    kinds = kinds_of(layout, config)
    sizes = {size for _, size in vocab_sizes(config)}
    tensors: dict[str, int] = {}
    for name, spec in layout.specs.items():
        stem = name.removesuffix(".weight")
        if len(spec.shape) < 2 or any(part in name for part in OTHERS):
            continue
        rows = spec.shape[row_axis(spec)]
        table = stem.endswith(TABLES)
        tokens = kinds[name] in ("embedding", "head") and (rows in sizes or stem.endswith(HEADS))
        if len(spec.shape) == 2 and (table or tokens or (rows in sizes and stem.endswith(HEADS))):
            tensors[name] = rows
    counts = set(tensors.values())
    heads = {name.removesuffix(".weight") for name in tensors}
    for name, spec in layout.specs.items():
        beside = name.removesuffix(".bias") in heads or name.endswith(BIASES)
        rows = spec.shape[row_axis(spec)] if spec.shape else 0
        if name not in tensors and beside and rows in counts:
            tensors[name] = rows
    return tensors


def vocab_sizes(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Each size of a vocabulary that a config says, also in the parts of one that has several,
    with its path: text_config.vocab_size.
    """
    for key, value in config.items():
        if "." in key:
            continue
        if key == SIZE and type(value) is int:
            yield f"{path}{key}", value
        elif isinstance(value, dict) and key.endswith("_config"):
            yield from vocab_sizes(value, f"{path}{key}.")
