"""What a model's config says of its stacks of blocks: how many there are, and what each one is."""

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
MOST = 10_000
"""Times that a list repeats a kind, at most."""
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

    Keys with a dot in them are no paths that a setting could name.
    """
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
    prefixes = [path for path in near if _last(path) in PREFIX and type(told[path]) is int]
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


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _is_count(path: str, value: object) -> bool:
    words = set(_last(path).split("_"))
    return type(value) is int and bool(words & COUNTING) and words <= COUNTING | BESIDE


def _is_indices(path: str, value: object, count: int) -> bool:
    """Whether it is a list of numbers of blocks, in their order."""
    key = _last(path)
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        return False
    if key in INDICES | TAPPED:
        return True
    ordered = value == sorted(set(value)) and all(0 <= entry < count for entry in value)
    return bool(value) and ordered and len(value) != count and key.endswith(NUMBERING)


def _is_per_block(path: str, value: object, count: int) -> bool:
    """Whether it is a list, or a text, with an entry for each block."""
    key = _last(path)
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


class Source(NamedTuple):
    """A block of the result: the config of the model that it is from, its number there, and how
    many there are.
    """

    config: Mapping[str, Any]
    number: int
    length: int


def block_settings(
    config: Mapping[str, Any], stack: str, stacks: Mapping[str, int], sources: Sequence[Source]
) -> dict[str, Any]:
    """What becomes of a config, by path, where a stack is made of these blocks."""
    keys, number = keys_of(config, stack, stacks), len(sources)
    settings: dict[str, Any] = dict.fromkeys(keys.counts, number)
    for path in keys.lists:
        entries = [entry_of(source, config, path) for source in sources]
        settings[path] = "".join(entries) if isinstance(at(config, path), str) else entries
    for path in keys.indices:
        places = [[i for i, s in enumerate(sources) if s.number == n] for n in at(config, path)]
        if _last(path) in TAPPED:
            settings[path] = [own[-1] for own in places if own]
        else:
            settings[path] = [
                i for i, s in enumerate(sources) if s.number in _like(s, config, path)
            ]
    for path in keys.prefixes:
        first = [source.number < _like(source, config, path) for source in sources]
        settings[path] = [*first, False].index(False)
    for home in {path.rpartition(".")[0] for path in keys.counts}:
        inner = at(config, home) if home else config
        told = _implied(inner, sources) | _repeated(inner, sources)
        told |= _stages(inner, stacks[stack], number)
        settings |= {f"{home}.{key}".lstrip("."): value for key, value in told.items()}
    settings |= _of_timm(config, stack, number) if not keys.counts else {}
    return settings | _decoder_of_t5(config, {**stacks, stack: number})


def traits_of(config: Mapping[str, Any], keys: Keys, number: int) -> tuple[str, ...]:
    """What a config tells of one block, beside its number: of what kind it is."""
    lists = [str(at(config, path)[number : number + 1]) for path in keys.lists]
    told = [path for path in keys.indices if _last(path) not in TAPPED]
    indices = [str(number in at(config, path)) for path in told]
    return (*lists, *indices, *(str(number < at(config, path)) for path in keys.prefixes))


def untapped(config: Mapping[str, Any], path: str, sources: Sequence[Source]) -> list[int]:
    """Blocks whose output goes elsewhere too, and which the result has not."""
    numbers = {source.number for source in sources}
    tapped = at(config, path) if _last(path) in TAPPED else ()
    return [number for number in tapped if number not in numbers]


def leading(config: Mapping[str, Any], path: str, sources: Sequence[Source]) -> bool:
    """Whether blocks that a prefix speaks of come before all others."""
    first = [source.number < _like(source, config, path) for source in sources]
    return first == sorted(first, reverse=True)


def _like(source: Source, main: Mapping[str, Any], path: str) -> Any:
    """A value of a block's own model, or of the main one where that says nothing of its kind."""
    own, other = at(source.config, path), at(main, path)
    return own if type(own) is type(other) else other


def entry_of(source: Source, config: Mapping[str, Any], path: str) -> Any:
    """A block's entry in a list of its own model's config, else in that of `config`."""
    own, main = at(source.config, path), at(config, path)
    alike = type(own) is type(main) and len(own) == source.length
    entries = own if alike else main
    return entries[min(source.number, len(entries) - 1)]


TRANSFORMERS = ("vit_", "deit", "beit", "eva")
"""How the names of timm's vision transformers begin."""
TYPES = "layer_types"
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
PERIODS: Mapping[str, tuple[str | None, int, int, str]] = {
    "gemma2": (None, 2, 1, SLIDING),
    "gemma3_text": ("sliding_window_pattern", 6, 1, SLIDING),
    "gemma3": ("sliding_window_pattern", 6, 1, SLIDING),
    "cohere2": ("sliding_window_pattern", 4, 1, SLIDING),
    "gpt_oss": (None, 2, 1, SLIDING),
    "olmo3": (None, 4, 1, SLIDING),
    "modernbert": ("global_attn_every_n_layers", 3, 0, SLIDING),
    "qwen3_next": ("full_attention_interval", 4, 1, LINEAR),
}
"""Types of models whose blocks alternate by their numbers where a config does not say of what type
each is: the key of the period, its default, what is added to a number before it is divided, and
what those are that have a remainder.
"""


def _implied(config: Mapping[str, Any], sources: Sequence[Source]) -> dict[str, Any]:
    """The types of blocks that are of another type where they came from than at their place."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in PERIODS or config.get(TYPES) is not None:
        return {}
    key, default, shift, other = PERIODS[kind]
    period = None if key is None else config.get(key)
    period = period if type(period) is int and period > 0 else default
    return {TYPES: [other if (s.number + shift) % period else FULL for s in sources]}


def _repeated(config: Mapping[str, Any], sources: Sequence[Source]) -> dict[str, Any]:
    """GPT-Neo's types of attention, which are told as kinds and how often they are repeated."""
    flat: list[Any] = []
    try:
        for kinds, count in config.get("attention_types") or ():
            flat += list(kinds) * min(count, MOST)
    except (TypeError, ValueError):
        return {}
    if len(flat) <= max((source.number for source in sources), default=0):
        return {}
    return {"attention_types": [[[flat[source.number]], 1] for source in sources]}


def _stages(config: Mapping[str, Any], before: int, count: int) -> dict[str, Any]:
    """The blocks of a backbone after which it gives features: the last stays the last."""
    told: dict[str, Any] = {}
    if isinstance(config.get("stage_names"), list):
        told["stage_names"] = ["stem", *(f"stage{number}" for number in range(1, count + 1))]
    indices, kept = config.get("out_indices"), range(count + 1)
    if isinstance(indices, list) and all(type(index) is int for index in indices):
        moved = dict.fromkeys(count if i == before else i for i in indices if i in (before, *kept))
        told["out_indices"] = list(moved)
        told["out_features"] = ["stem" if i == 0 else f"stage{i}" for i in moved]
    return told


def _of_timm(config: Mapping[str, Any], stack: str, number: int) -> dict[str, Any]:
    """The depth of a vision transformer of timm, which else its architecture tells."""
    name, told = config.get("architecture"), config.get("model_args")
    if stack != "blocks" or not isinstance(name, str) or not name.startswith(TRANSFORMERS):
        return {}
    return {"model_args": {**(told if isinstance(told, Mapping) else {}), "depth": number}}


def _decoder_of_t5(config: Mapping[str, Any], stacks: Mapping[str, int]) -> dict[str, Any]:
    """How many blocks the decoder has, which T5 takes from the encoder where it is not said;
    `stacks` as the result has them.
    """
    decoders = [count for stack, count in stacks.items() if "decoder" in roles(stack)]
    unsaid = "num_layers" in config and config.get("num_decoder_layers") is None
    return {"num_decoder_layers": decoders[0]} if unsaid and decoders else {}
