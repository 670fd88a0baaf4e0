"""Vocabularies of each form of file; what is torn or hostile is an error of magmerge's own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.tokens.sentencepiece import pieces
from magmerge.checkpoints.tokens.vocabulary import read_vocabulary
from magmerge.core.errors import CheckpointError, MagmergeError
from tests.quick import examples

WISH = {"<unk>": 0, "a": 1, "\u2581b": 2, "<x>": 3}


def varint(number: int) -> bytes:
    """A number as protobuf has it."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece(texts: list[str]) -> bytes:
    """A model file: pieces with scores and types, then settings."""
    every = b""
    for text in texts:
        every += field(1, field(1, text.encode()) + b"\x15\x00\x00\x80\x3f" + b"\x18\x01")
    return every + field(2, b"\x08\x01") + b"\x20\x05"


ADDED = {"id": 3, "content": "<x>", "special": True}
FILES: dict[str, dict[str, Any]] = {
    "bpe": {"tokenizer.json": {"model": {"vocab": dict(list(WISH.items())[:3])},
                               "added_tokens": [ADDED]}},
    "unigram": {"tokenizer.json": {"model": {"vocab": [["<unk>", 0], ["a", -1], ["\u2581b", -2]]},
                                   "added_tokens": [ADDED]}},
    "pairs": {"vocab.json": dict(list(WISH.items())[:3]), "added_tokens.json": {"<x>": 3}},
    "list": {"vocab.txt": "<unk>\na\r\n\u2581b\n", "tokenizer_config.json": {
        "added_tokens_decoder": {"3": {"content": "<x>", "special": True}}}},
    "pieces": {"tokenizer.model": sentencepiece(["<unk>", "a", "\u2581b"]),
               "added_tokens.json": {"<x>": 3}},
}  # fmt: skip


def written(folder: Path, files: dict[str, Any]) -> Path:
    """The files in a folder."""
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("form", FILES)
def test_every_form_says_the_same(tmp_path: Path, form: str) -> None:
    vocabulary = read_vocabulary(written(tmp_path, FILES[form]))
    assert vocabulary is not None
    assert vocabulary.ids == WISH
    assert list(vocabulary.added) == ["<x>"]


def test_no_file_says_none(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None
    assert read_vocabulary(None) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=examples(200), deadline=None)
@given(model=JSON, added=JSON)
def test_any_json_is_a_vocabulary_or_none(
    tmp_path_factory: pytest.TempPathFactory, model: Any, added: Any
) -> None:
    content = {"model": {"vocab": model}, "added_tokens": added}
    folder = written(tmp_path_factory.mktemp("any"), {"tokenizer.json": content})
    try:
        vocabulary = read_vocabulary(folder)
    except MagmergeError:
        return
    assert vocabulary is None or all(type(i) is int and i >= 0 for i in vocabulary.ids.values())


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=40) | st.binary(max_size=8).map(lambda end: sentencepiece(["a"]) + end))
def test_any_bytes_are_pieces_or_a_value_error(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(text, str) for text in pieces(content))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    whole = sentencepiece(["<unk>", "a"])
    written(tmp_path, {"tokenizer.model": whole[:-7]})
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        read_vocabulary(tmp_path)
