"""Keys of a config that speak of one of a model's stacks of blocks: counts, and lists of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core.stacks import roles

COUNTING = frozenset({"layer", "layers", "depth", "blocks", "groups"})
BESIDE = frozenset(
    {
        "num", "n", "hidden", "encoder", "decoder", "transformer", "max", "window", "single",
        "text", "vision",
    }
)  # fmt: skip
"""Words that keys of counts consist of, at least one of them of the first kind."""
INDICES = frozenset(
    {
        "mlp_only_layers", "cross_attention_layers", "attn_layer_indices", "global_attn_indexes",
        "fullatt_block_indexes", "hybrid_layer_ids", "global_attn_layers", "moe_layers",
        "full_attn_idxs",
    }
)  # fmt: skip
"""Keys of lists of blocks' numbers: those of one kind."""
TAPPED = frozenset({"deepstack_visual_indexes", "intermediate_layers_indices"})
"""Keys of lists of the blocks whose output goes elsewhere too: as many as what takes them in."""
NUMBERING = ("_indices", "_indexes", "_idxs", "_ids", "_layers")
"""How other keys of such lists end."""
PREFIX = frozenset({"first_k_dense_replace", "num_dense_layers"})
"""Keys that say how many of the first blocks are of another kind than those after them."""
SPEAKING = frozenset(
    {"layer", "layers", "block", "blocks", "pattern", "intermediate", "query", "kv", "ffn"}
)
"""Words in keys of lists with an entry for each block."""
OTHERWISE = frozenset(
    {
        "architectures", "eos_token_id", "bos_token_id", "pad_token_id", "patch_size", "image_size",
        "conv_dim", "conv_kernel", "conv_stride", "short_factor", "long_factor", "mrope_section",
        "out_features", "out_indices", "stage_names", "suppress_tokens", "begin_suppress_tokens",
    }
)  # fmt: skip
"""Keys of lists that have no entry for each block, however many they have."""
DEEP = 8
"""How many parts within each other a config has, at most."""
FEW = 4
"""Of lists no longer than so the name must tell that they are of blocks."""


class Keys(NamedTuple):
    """The paths of what a config says of a stack, such as text_config.num_hidden_layers."""

    counts: Sequence[str]
    lists: Sequence[str]
    indices: Sequence[str]
    prefixes: Sequence[str]


def leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config that is no object, with its path; of one that has several parts too.

    Keys with a dot in them are no paths that a setting could name, and nothing is looked for deeper
    than DEEP.
    """
    if path.count(".") > DEEP:
        return
    for key, value in config.items():
        if "." in key:
            continue
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def keys_of(config: Mapping[str, Any], stack: str, stacks: Mapping[str, int]) -> Keys:
    """What a config says of one of a model's `stacks`, which are told with their lengths."""
    own = stacks[stack]
    told = dict(leaves(config))
    counts = {path: roles(path) for path, value in told.items() if _is_count(path, value)}
    ours = _owned(stack, stacks, counts, told)
    homes = {path.rpartition(".")[0] for path in ours} or {""}
    near = [
        path for path in told if path.rpartition(".")[0] in homes and _fits(path, stack, stacks)
    ]
    indices = [path for path in near if _is_indices(path, told[path], own)]
    lists = [p for p in near if p not in indices and _is_per_block(p, told[p], own)]
    prefixes = [path for path in near if last_of(path) in PREFIX and type(told[path]) is int]
    return Keys(ours, lists, indices, prefixes)


def _owned(
    stack: str,
    stacks: Mapping[str, int],
    counts: Mapping[str, frozenset[str]],
    told: Mapping[str, Any],
) -> list[str]:
    """The paths that say how many blocks a stack has: those of its role, and plain ones where it is
    the stack that these mean.
    """

    def of_role(other: str) -> list[str]:
        own = _meant(other)
        fit = [p for p, role in counts.items() if role and role <= own and told[p] == stacks[other]]
        most = max((len(counts[path]) for path in fit), default=0)
        return [path for path in fit if len(counts[path]) == most]

    plain = [path for path, role in counts.items() if not role and told[path] == stacks[stack]]
    alike = [other for other, count in stacks.items() if count == stacks[stack]]
    meant = min(alike, key=lambda other: (bool(of_role(other)), len(roles(other) & ASIDE)))
    return [*of_role(stack), *(plain if meant == stack else ())]


ASIDE = frozenset({"decoder", "vision", "audio", "qformer", "single"})
"""Roles of stacks that plain keys do not mean where there is another one."""


def _meant(stack: str) -> frozenset[str]:
    """The roles that a stack has in a config: a plain one may be the text part of several."""
    own = roles(stack)
    return own if own & ASIDE else own | {"text"}


def _fits(path: str, stack: str, stacks: Mapping[str, int]) -> bool:
    """Whether a key beside a stack's count speaks of it, and not of another one beside it."""
    role = roles(path) & frozenset().union(*map(_meant, stacks))
    if role <= _meant(stack) and role:
        return True
    others = [other for other in stacks if other != stack and stacks[other] == stacks[stack]]
    return not role and not (roles(stack) & ASIDE and any(not roles(o) & ASIDE for o in others))


def last_of(path: str) -> str:
    """The key itself, without the parts that it is in."""
    return path.rpartition(".")[2]


def _is_count(path: str, value: object) -> bool:
    words = set(last_of(path).split("_"))
    return type(value) is int and bool(words & COUNTING) and words <= COUNTING | BESIDE


def _is_indices(path: str, value: object, count: int) -> bool:
    """Whether it is a list of numbers of blocks, in their order."""
    key = last_of(path)
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        return False
    if key in INDICES | TAPPED:
        return True
    ordered = value == sorted(set(value)) and all(0 <= entry < count for entry in value)
    return bool(value) and ordered and len(value) != count and key.endswith(NUMBERING)


def _is_per_block(path: str, value: object, count: int) -> bool:
    """Whether it is a list, or a text, with an entry for each block."""
    key = last_of(path)
    speaks = not SPEAKING.isdisjoint(key.split("_"))
    if isinstance(value, str):
        return len(value) == count and key.endswith("pattern")
    if not isinstance(value, list) or len(value) != count or key in OTHERWISE:
        return False
    return speaks or count > FEW


def at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a path; None where there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
