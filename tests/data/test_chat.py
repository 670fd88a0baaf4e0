"""Conversations by the tokenizer's chat template, joined columns, and Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples.tiny.words import write_tokenizer
from transformers import AutoTokenizer

from magmerge.data.inputs import calibration_inputs, prepare
from magmerge.data.rows import Chat, Chats, DataError, SampleDraw, SampleOptions, Texts
from magmerge.data.sources import read_samples

TEMPLATE = (
    "[CLS]{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %} {{ m.role }} {{ m.content }} [SEP]{% endfor %}"
)
TURNS = [{"role": "user", "content": "waaa"}, {"role": "assistant", "content": "waab waac"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer that has a chat template."""
    write_tokenizer(tmp_path / "model", "[CLS] $A [SEP]")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(path: Path, **how: Any) -> Any:
    return read_samples(path, SampleDraw("expert", None, **how)).content


def test_messages_go_through_the_template_once(tmp_path: Path, folder: Path) -> None:
    path = lines(tmp_path / "chat.jsonl", {"messages": TURNS, "id": "a"}, {"messages": []})
    content = drawn(path)
    assert content == Chats((Chat(tuple(TURNS)),))
    (call,) = prepare(read_samples(path, SampleDraw("e", None)), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=True)["input_ids"]
    assert call.kwargs["input_ids"].tolist() == [wanted]
    # The template's own marks, and no others.
    assert call.kwargs["input_ids"][0].tolist().count(tokenizer.cls_token_id) == 1


def test_prompt_and_completion_are_a_conversation_or_joined_texts(tmp_path: Path) -> None:
    path = lines(tmp_path / "pairs.jsonl", {"prompt": "waaa", "completion": "waab waac"})
    assert drawn(path) == Chats((Chat(tuple(TURNS)),))
    assert drawn(path, field="prompt,completion") == Texts(("waaa\nwaab waac",))
    assert drawn(path, field="completion") == Texts(("waab waac",))
    spoken = lines(tmp_path / "spoken.jsonl", {"prompt": TURNS[:1], "completion": TURNS[1:]})
    assert drawn(spoken) == Chats((Chat(tuple(TURNS)),))
    odd = lines(tmp_path / "odd.jsonl", {"messages": [{"from": "human"}]})
    with pytest.raises(DataError, match=r"(?s)line 1: column 'messages' holds no conversation"):
        drawn(odd)


def test_a_column_text_still_comes_first_and_commas_in_a_name_are_one_column(
    tmp_path: Path,
) -> None:
    both = lines(tmp_path / "both.jsonl", {"text": "waaa", "messages": TURNS})
    assert drawn(both) == Texts(("waaa",))
    comma = lines(tmp_path / "comma.jsonl", {"a,b": "waaa", "a": "x", "b": "y"})
    assert drawn(comma, field="a,b") == Texts(("waaa",))
    with pytest.raises(DataError, match="column 'b' holds no text"):
        drawn(lines(tmp_path / "bad.jsonl", {"a": "x", "b": 3}), field="a, b")


def test_without_a_template_or_where_it_refuses_the_remedy_is_told(
    tmp_path: Path, folder: Path
) -> None:
    path = lines(tmp_path / "chat.jsonl", {"messages": [{"role": "system", "content": "x"}]})
    options = SampleOptions(samples=1)
    with pytest.raises(DataError, match=r"refuses conversation 1 of the draw: no system"):
        calibration_inputs({"e": path}, folder=folder, options=options)
    write_tokenizer(tmp_path / "plain", "[CLS] $A [SEP]")
    with pytest.raises(DataError, match=r"(?s)no chat template.*--text-field prompt,completion"):
        calibration_inputs({"e": path}, folder=tmp_path / "plain", options=options)


def test_parquet_gives_the_rows_that_json_lines_give(tmp_path: Path) -> None:
    rows = [{"text": f"w{n}", "messages": TURNS, "label": n} for n in range(25)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=7)
    lines(tmp_path / "rows.jsonl", *rows)
    for how in ({"samples": 9, "seed": 3}, {"samples": None}, {"samples": 5, "passed": 4}):
        parquet, json_lines = (
            read_samples(tmp_path / f"rows.{end}", SampleDraw("e", label_field="label", **how))
            for end in ("parquet", "jsonl")
        )
        assert parquet.content == json_lines.content
        assert parquet.labels == json_lines.labels
    assert len(drawn(tmp_path / "rows.parquet", field="messages")) == 25
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"(?s)no Parquet file that can be read"):
        drawn(tmp_path / "broken.parquet")


def test_a_draw_that_passes_rows_over_goes_on_where_a_smaller_one_ends(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *({"text": f"w{n}"} for n in range(10)))
    whole = read_samples(path, SampleDraw("e", 7)).content.values
    first, rest = (
        read_samples(path, SampleDraw("e", n, passed=p)).content.values for n, p in ((4, 0), (3, 4))
    )
    assert whole == first + rest
    with pytest.raises(DataError, match="wanted"):
        read_samples(path, SampleDraw("e", 7, passed=4))
