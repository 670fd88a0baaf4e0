"""Stacks of blocks, as names number them: model.layers.N, encoder.block.N, blocks.N."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from magmerge.core.errors import ParameterError, shortened, suggestion
from magmerge.core.types import TensorSpec

FRONT = frozenset(
    {
        "embed_tokens", "embeddings", "embedding", "wte", "wpe", "word_embeddings", "embed_in",
        "shared", "patch_embed", "patch_embedding", "patch_embeddings", "pos_embed", "cls_token",
        "class_embedding", "position_embedding", "positional_embedding", "position_embeddings",
        "embed_positions", "pre_layrnorm", "embed", "conv_in", "conv1", "stem", "conv_stem",
        "feature_extractor", "feature_projection", "pos_conv_embed", "tok_embeddings",
        "token_embedding", "tokens_embed", "positions_embed", "x_embedder", "img_in", "txt_in",
        "context_embedder", "query_tokens", "rotary_emb", "rope_embeddings", "conv_layers",
    }
)  # fmt: skip
"""Parts of names of what comes before a model's blocks."""
ROLES = {
    "vision": "vision", "visual": "vision", "image": "vision", "vit": "vision",
    "text": "text", "language": "text", "audio": "audio", "speech": "audio",
    "encoder": "encoder", "decoder": "decoder", "qformer": "qformer", "single": "single",
}  # fmt: skip
"""Words in names of stacks, and of keys of configs, that tell which of several it is."""
NEAR = 0.5
"""A stack of more than this share of the greatest one's entries could be meant as well."""


_NUMBER = re.compile(r"(?:^|\.)(0|[1-9][0-9]{0,5})(?=\.|\Z)", re.ASCII)


class Block(NamedTuple):
    """Where a tensor is: the stack, the number of the block in it, and its name there."""

    stack: str
    number: int
    inner: str


def block_of(name: str) -> Block | None:
    """The block of a tensor, by the first number in its name; None outside of blocks."""
    found = _NUMBER.search(name)
    if found is None:
        return None
    return Block(name[: found.start()], int(found[1]), name[found.end() + 1 :])


def before_blocks(name: str) -> bool:
    """Whether a tensor outside of blocks comes before them, as embeddings do."""
    return not FRONT.isdisjoint(name.split("."))


def roles(name: str) -> frozenset[str]:
    """Which of a model's stacks a name speaks of: of its vision or text part, encoder or decoder.

    A decoder that is called an encoder further in, as BERT's is, is a decoder.
    """
    words = name.replace(".", "_").split("_")
    told = [ROLES[word] for word in words if word in ROLES]
    sides = [role for role in told if role in ("encoder", "decoder")]
    return frozenset(told) - frozenset(sides[1:]) | frozenset(sides[:1])


def numbers_of(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers of the blocks that each stack has."""
    numbers: dict[str, set[int]] = {}
    for block in map(block_of, names):
        if block is not None:
            numbers.setdefault(block.stack, set()).add(block.number)
    return numbers


def lengths(names: Iterable[str]) -> dict[str, int]:
    """How many blocks each stack has: its greatest number and one."""
    return {stack: max(numbers) + 1 for stack, numbers in numbers_of(names).items()}


def stack_named(specs: Mapping[str, TensorSpec], word: str | None) -> str:
    """The stack of this name, or the only one with it in its name; without a word, the main one.

    ParameterError, with the stacks that there are, where none or several could be meant.
    """
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        block = block_of(name)
        if block is not None:
            sizes[block.stack] = sizes.get(block.stack, 0) + math.prod(spec.shape)
    shown = shortened(list(sizes)) or "none"
    if word is None:
        most = max(sizes.values(), default=0)
        near = [stack for stack, size in sizes.items() if size > NEAR * most]
        if len(near) == 1:
            return near[0]
        raise ParameterError(
            f"layers are counted in one stack of blocks, and this model has {shown}",
            remedy="name the one that is meant with stack: (in recipes of mergekit's: modules:)",
        )
    if word in sizes:
        return word
    near = [stack for stack in sizes if word in stack.split(".") or word in stack]
    if len(near) != 1:
        raise ParameterError(
            f"{word!r} names no stack of blocks, or several: there are {shown}",
            remedy=suggestion(word, sizes),
        )
    return near[0]


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep in its stack of blocks each tensor is: 0 in the first, 1 in the last, 0 outside."""
    blocks = {name: block_of(name) for name in names}
    last = lengths(blocks)
    return {
        name: 0.0 if block is None else block.number / (last[block.stack] - 1 or 1)
        for name, block in blocks.items()
    }
