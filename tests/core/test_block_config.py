"""Configs of any content: what they say of blocks, and what becomes of it, without an error."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.block_config import Source, block_settings, leading, traits_of, untapped
from magmerge.core.block_keys import INDICES, PREFIX, TAPPED, keys_of
from magmerge.core.stacks import block_of, lengths
from tests.quick import examples

KEYS = st.sampled_from(
    ["num_hidden_layers", "layer_types", "text_config", "vision_config", "decoder", "depth",
     "hybrid_override_pattern", "num_decoder_layers", "num_layers", "model_type", "stage_names",
     "attention_types", "out_indices", "sliding_window_pattern", "architecture", "a.b",
     *sorted(INDICES | PREFIX | TAPPED)]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 5) | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(["gemma2", "gpt_neo", "vit_tiny", "MM*-"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=8)
STACKS = {"model.layers": 4, "model.decoder.layers": 4, "vision.blocks": 3}


@settings(deadline=None, max_examples=examples(400))
@given(CONFIGS, CONFIGS, st.sampled_from(sorted(STACKS)), st.lists(st.integers(0, 2), min_size=1))
def test_any_config_gives_settings_that_are_json(
    config: dict[str, Any], other: dict[str, Any], stack: str, numbers: list[int]
) -> None:
    sources = [Source(own, n, STACKS[stack]) for own in (config, other) for n in numbers]
    keys = keys_of(config, stack, STACKS)
    told = block_settings(config, stack, STACKS, sources)
    json.dumps(told)
    assert all(told[path] == len(sources) for path in keys.counts)
    assert all(len(told[path]) == len(sources) for path in keys.lists)
    for number in range(STACKS[stack]):
        hash(traits_of(config, keys, number))
    for path in keys.prefixes:
        leading(config, path, sources)
    for path in keys.indices:
        untapped(config, path, sources)


@given(st.lists(st.text(alphabet="abl.0123456789\u0663 ", max_size=9000), max_size=5))
def test_names_of_any_kind(names: list[str]) -> None:
    """A block's name is what it was put together of."""
    for name in names:
        block = block_of(name)
        if block is not None:
            parts = (block.stack, str(block.number), block.inner)
            assert ".".join(parts).strip(".") == name.strip(".")
    assert all(length < 1_000_000 for length in lengths(names).values())


def test_numbers_that_are_none() -> None:
    assert block_of("layers.007.w") is None
    assert block_of("layers." + "9" * 5000 + ".w") is None
    assert block_of("layers.\u0663.w") is None
