"""What becomes of a config where a result's blocks are others: counts, and what each block is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core.block_keys import TAPPED, Keys, at, keys_of, last_of
from magmerge.core.stacks import roles

MOST = 10_000
"""Times that a list repeats a kind, at most."""


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
        if last_of(path) in TAPPED:
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
    told = [path for path in keys.indices if last_of(path) not in TAPPED]
    indices = [str(number in at(config, path)) for path in told]
    return (*lists, *indices, *(str(number < at(config, path)) for path in keys.prefixes))


def untapped(config: Mapping[str, Any], path: str, sources: Sequence[Source]) -> list[int]:
    """Blocks whose output goes elsewhere too, and which the result has not."""
    numbers = {source.number for source in sources}
    tapped = at(config, path) if last_of(path) in TAPPED else ()
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
