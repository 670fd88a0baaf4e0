from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.adapters.names.vocabulary import (
    CLIP,
    LDM,
    T5,
    TRANSFORMER,
    UNET,
    Language,
    dotted,
    flat,
)
from tests.checkpoints.adapters import module_names


@pytest.mark.parametrize(
    ("language", "names"),
    [
        (UNET, module_names.unet("sd")),
        (UNET, module_names.unet("sdxl")),
        (TRANSFORMER, module_names.flux()),
        (CLIP, {**module_names.clip(), "text_projection": ()}),
        (T5, module_names.t5()),
    ],
    ids=["sd", "sdxl", "flux", "clip", "t5"],
)
def test_every_module_is_read_back(language: Language, names: dict) -> None:
    for name in names:
        assert language.read(flat(name)) == name


def test_there_are_as_many_modules_as_the_models_have() -> None:
    # Counted on diffusers' own models of the configurations that were published.
    assert len(module_names.unet("sd")) == 282
    assert len(module_names.unet("sdxl")) == 794
    assert len(module_names.flux()) == 30


@pytest.mark.parametrize(
    "name",
    [
        "to_q",  # no model begins so
        "down_blocks_attentions_0_proj_in",  # the block's number is missing
        "down_blocks_00_resnets_0_conv1",
        "down_blocks_٣_resnets_0_conv1",
        "down_blocks_0_resnets_0_conv1_",
        "",
        "conv_in" + "_0" * 400,
    ],
)
def test_other_names_are_not_read(name: str) -> None:
    assert UNET.read(name) is None


def test_a_name_that_can_be_read_in_two_ways_is_not_read() -> None:
    words = {"a": 0, "b": 0, "a_b": 0, "list": 1}
    assert dotted("a_b", words) is None
    assert dotted("a_a_b_b", words) is None
    assert dotted("b_list_3_a", words) == "b.list.3.a"


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(sorted({*UNET.segments, *LDM.segments, "0", "23", "01", "x"})),
        max_size=12,
    )
)
def test_fuzz_what_is_read_is_written_so(tokens: list[str]) -> None:
    name = "_".join(tokens)
    for language in (UNET, LDM, TRANSFORMER, CLIP, T5):
        found = dotted(name, language.segments)
        assert found is None or flat(found) == name
