"""What a model's folder tells of it, whatever it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.model_facts import facts_of, hub_id, licence_from, plausible
from tests.quick import examples


def facts(folder: Path, card: str = "", **files: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(card)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return facts_of("m", str(folder), folder)


def test_a_cards_front_matter_is_read(tmp_path: Path) -> None:
    card = (
        "---\nlicense: llama3\nlanguage:\n- en\n- no\n- 'a b'\ndatasets: [org/set, ../x]\n"
        "base_model: [meta-llama/Llama-3, /home/me/x]\n---\n# Hello\n"
    )
    assert facts(tmp_path / "m", card) == {
        "license": "llama3", "languages": ["en", "no"], "datasets": ["org/set"],
        "parents": ["meta-llama/Llama-3"],
    }  # fmt: skip
    windows = b"\xef\xbb\xbf" + card.replace("\n", "\r\n").encode()
    (tmp_path / "m" / "README.md").write_bytes(windows)
    assert facts_of("m", "m", tmp_path / "m")["license"] == "llama3"


def test_licences_are_read_from_their_texts_too(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    facts(folder)
    (folder / "LICENSE").write_text("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007")
    told = facts_of("m", str(folder), folder)
    assert told == {"license": "gpl-3.0"}
    assert licence_from("m", told).id == "gpl-3.0"
    both = facts(folder, "---\nlicense: mit\n---\n")
    assert both["license"] == "mit"
    several = facts(folder, "---\nlicense: [mit, gemma]\n---\n")
    assert several == {"license": "other", "license_name": "mit-and-gemma"}


def test_configs_tell_what_a_model_was_made_of(tmp_path: Path) -> None:
    assert facts(tmp_path / "a", config={"_name_or_path": "org/base"})["parents"] == ["org/base"]
    adapter = {"base_model_name_or_path": "org/base"}
    assert facts(tmp_path / "b", adapter_config=adapter)["parents"] == ["org/base"]
    for path in ("/data/base", "./base", "checkpoints/base", "out/checkpoint-100", 7, None):
        assert facts(tmp_path / "c", config={"_name_or_path": path}) == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/model", "org/model"),
        ("org/model@main", "org/model"),
        ("/home/me/.cache/huggingface/hub/models--org--model/snapshots/abc", "org/model"),
        ("models/base", None),
        ("run/checkpoint-500", None),
        ("/home/me/model", None),
        ("org/model.safetensors", None),
        ("model", None),
        ("org/model--x", None),
        ("org/model/part", None),
        ("org/<script>", None),
    ],
)
def test_names_of_the_hub_are_told_from_paths(source: str, name: str | None) -> None:
    assert hub_id(source) == name


def test_what_lies_here_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert hub_id("org/model") is None
    assert plausible("org/model") == "org/model"


@settings(deadline=None, max_examples=examples(100))
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_in_a_card_are_no_error(tmp_path_factory: Any, head: bytes, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("facts")
    (folder / "README.md").write_bytes(b"---\n" + head + b"\n---\n" + text)
    (folder / "config.json").write_bytes(text)
    json.dumps(facts_of("m", "m", folder))
