"""Licences of a merge's models: the strictest, and what is said where none covers the others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.licences import Licence, joined, licence_in, licence_of
from tests.quick import examples


def of(*ids: str | None) -> list[Licence]:
    return [licence_of(f"m{place}", name) for place, name in enumerate(ids)]


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["mit", "apache-2.0"], {"license": "apache-2.0"}),
        (["apache-2.0", "mit", "cc0-1.0"], {"license": "apache-2.0"}),
        (["apache-2.0", "gpl-3.0"], {"license": "gpl-3.0"}),
        (["lgpl-3.0", "gpl-3.0"], {"license": "gpl-3.0"}),
        (["cc-by-nc-4.0", "mit"], {"license": "cc-by-nc-4.0"}),
        (["cc-by-nc-sa-4.0", "cc-by-nc-4.0"], {"license": "cc-by-nc-sa-4.0"}),
        (["llama3", "llama3"], {"license": "llama3"}),
        (["Llama-3.1", "Apache 2.0"], {"license": "llama3.1"}),
        (["gemma", "cc-by-nc-4.0"], {"license": "other", "license_name": "gemma-and-cc-by-nc-4.0"}),
        (["my own", "mit"], {"license": "other", "license_name": "my-own"}),
        (["mit", None], {"license": "unknown"}),
        (["llama2", None], {"license": "llama2"}),
        ([None, None], {}),
        ([None, "unknown"], {}),
    ],
)
def test_the_strictest_licence_is_that_of_the_merge(ids: list[str], told: dict[str, str]) -> None:
    assert joined(of(*ids)).metadata == told
    assert joined(of(*reversed(ids))).metadata["license"] == told["license"] if told else True


def test_what_a_reader_must_know_is_said() -> None:
    notes = " ".join(joined(of("cc-by-nc-4.0", "mit", None)).notes)
    for words in ("allows no commercial use", "mit (m1)", "no licence is told by m2"):
        assert words in notes
    assert "may not go together" in joined(of("gemma", "gpl-3.0")).notes[-1]
    assert "Built with Llama" in joined(of("llama3.1")).notes[0]
    assert "forbids to give on changed versions" in joined(of("cc-by-nd-4.0"))[1][0]
    assert joined(of("mit", "apache-2.0")).notes == ()
    assert joined(of(None)).notes == ()


def test_an_other_licence_keeps_its_name_and_an_honest_link() -> None:
    other = licence_of("m", "other", "Qwen Research", "https://example.org/LICENSE")
    told = {"license": "other", "license_name": "qwen-research"}
    assert joined([other]).metadata == {**told, "license_link": "https://example.org/LICENSE"}
    for link in ("LICENSE", "javascript:alert(1)", "https://a b", 3, None):
        assert joined([licence_of("m", "other", "Qwen Research", link)]).metadata == told


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("                Apache License\n         Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of\ncharge, to any person obtaining a "
         "copy, to deal in the Software without restriction", "mit"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3", "lgpl-3.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("You may look at it on Tuesdays.", "other"),
    ],
)  # fmt: skip
def test_texts_of_licences_are_known(text: str, found: str) -> None:
    assert licence_in("m", text).id == found


@settings(deadline=None, max_examples=examples(100))
@given(st.lists(st.none() | st.text() | st.sampled_from(["mit", "gemma", "other"]), max_size=5))
def test_any_words_give_metadata_that_a_card_may_have(ids: list[str | None]) -> None:
    metadata = joined(of(*ids)).metadata
    assert set(metadata) <= {"license", "license_name", "license_link"}
    assert all(value and not set(value) - set("abcdefghijklmnopqrstuvwxyz0123456789.+-")
               for value in metadata.values())  # fmt: skip
