"""Quick looks at language models: files of texts and questions, and each row's own choices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.data.rows import DataError
from magmerge.evaluation.evaluator import Columns, quick_suite
from magmerge.evaluation.task_scores import choices_of, right_choices, values_of
from tests.evaluation.models import save_llama, save_rows, save_suite, texts

SETS = (["yes", "no"], ["good", "bad", "very good"], ["one two", "three", "text", "a b c"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    save_llama(folder / "model")
    save_rows(folder / "plain.jsonl", [{"text": text} for text in texts(30)])
    rows = [
        {"question": text, "choices": SETS[row % 3], "answer": row % len(SETS[row % 3])}
        for row, text in enumerate(texts(30, seed=4))
    ]
    save_rows(folder / "asked.jsonl", rows)
    named = [{**row, "answer": row["choices"][row["answer"]]} for row in rows]
    save_rows(folder / "named.jsonl", named)
    return folder


def test_questions_are_those_of_a_slow_loop(llama: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama / "model").eval()
    tokenizer, right = AutoTokenizer.from_pretrained(llama / "model"), 0
    rows = [json.loads(line) for line in (llama / "asked.jsonl").read_text().splitlines()]
    for row in rows:
        sums = []
        start = len(tokenizer(row["question"])["input_ids"])
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logs = log_softmax(model(ids).logits[0].double(), dim=-1)
            places = range(start, ids.shape[1])
            sums.append(sum(float(logs[p - 1, ids[0, p]]) for p in places))
        right += sums.index(max(sums)) == row["answer"]
    found = magmerge.evaluate(
        llama / "model",
        questions=[llama / "asked.jsonl", llama / "named.jsonl"],
        perplexity=[llama / "plain.jsonl"],
    )
    assert 0 < right < len(rows)
    assert found["asked"].score == found["named"].score == right / len(rows)
    assert found["plain"].metric == "perplexity"
    assert found.suite == "quick look"


def test_texts_are_measured_as_in_a_suite(llama: Path) -> None:
    tasks = {"p": {"metric": "perplexity", "data": "plain.jsonl"}}
    suite = save_suite(llama, tasks, base="model")
    expected = magmerge.evaluate(llama / "model", suite=suite)["p"]
    found = magmerge.evaluate(llama / "model", perplexity=[llama / "plain.jsonl"])["plain"]
    assert (found.score, found.low, found.high) == (expected.score, expected.low, expected.high)


def test_columns_and_names(llama: Path, tmp_path: Path) -> None:
    rows = [{"q": "a b", "options": ["yes", "no"], "right": "no"}] * 3
    save_rows(tmp_path / "asked.jsonl", rows)
    columns = {"question": "q", "choices": "options", "answer": "right"}
    found = magmerge.evaluate(
        [llama / "model", llama / "model"],
        questions=[tmp_path / "asked.jsonl", tmp_path / "asked.jsonl"],
        columns=columns,
    )
    assert [one.task for one in found[0].tasks] == ["asked", "asked 2"]
    (tmp_path / "asked.csv").write_text('question,choices,answer\na b,"[""yes"", ""no""]",1\n')
    assert (
        magmerge.evaluate(llama / "model", questions=[tmp_path / "asked.csv"])["asked"].count == 1
    )


def test_mistakes_are_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="nothing to measure on"):
        magmerge.evaluate(llama / "model")
    with pytest.raises(ParameterError, match="exclude each other"):
        magmerge.evaluate(llama / "model", perplexity=["a"], lm_eval=["b"])
    with pytest.raises(ParameterError, match="nothing to measure on"):
        quick_suite()
    with pytest.raises(MagmergeError, match="no such file"):
        magmerge.evaluate(llama / "model", perplexity=[tmp_path / "a.jsonl"])
    with pytest.raises(MagmergeError, match="no column for 'choises'") as raised:
        magmerge.evaluate(llama / "model", questions=["a"], columns={"choises": "c"})
    assert "choices" in str(raised.value)
    broken = AutoModelForCausalLM.from_pretrained(llama / "model")
    next(broken.parameters()).data[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    for file in (llama / "model").glob("tok*"):
        shutil.copy(file, tmp_path / "broken")
    with pytest.raises(MagmergeError, match="1 NaN and 0 infinite"):
        magmerge.evaluate(tmp_path / "broken", perplexity=[llama / "plain.jsonl"])
    rows = [{"question": "a b", "choices": ["yes"], "answer": 0}]
    save_rows(tmp_path / "wrong.jsonl", rows)
    with pytest.raises(DataError, match="no list of two choices"):
        magmerge.evaluate(llama / "model", questions=[tmp_path / "wrong.jsonl"])
    with pytest.raises(TypeError):
        Columns(nosuch="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices_field": "c"}, "needs text_field"),
        ({"choices_field": "c", "text_field": "t", "choices": ["a", "b"]}, "exclude each other"),
        ({"choices_field": "c", "text_field": "t", "head": "h"}, "exclude each other"),
        ({"choices_field": "c", "text_field": "t", "metric": "f1"}, "goes with accuracy"),
        ({"metric": "pearson", "classes": ["a", "b"]}, "is of numbers"),
        ({"metric": "perplexity", "pair_field": "b"}, "pair_field"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, change: dict, message: str) -> None:
    path = save_suite(tmp_path, {"a": {"data": "x.jsonl", **change}}, base=str(tmp_path))
    with pytest.raises(ParameterError, match=message):
        magmerge.evaluate({}, suite=path)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(rows=st.lists(ANY, max_size=3), labels=st.lists(ANY, max_size=3))
def test_any_labels_and_choices(rows: list, labels: list) -> None:
    for read in (
        lambda: values_of(labels, "x"),
        lambda: choices_of(rows, "x"),
        lambda: right_choices(labels, [("a", "1")] * len(labels), "x"),
    ):
        try:
            read()
        except DataError as error:
            assert error.remedy
