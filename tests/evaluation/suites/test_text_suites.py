"""Text suites from end to end: cut heads on encoders find what the classifiers find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import magmerge
from magmerge.core.errors import MagmergeWarning
from tests.evaluation.suites.clips import save_classifier
from tests.evaluation.suites.test_folders import written


def text_rows(count: int, *, pairs: bool) -> str:
    words = ["good text", "bad one", "very a b", "no c d", "two three yes"]
    rows = []
    for number in range(count):
        row = {"sentence": words[number % 5], "label": number % 2}
        more = {"sentence1": words[number % 5], "sentence2": words[number % 3], "score": 1}
        rows.append(json.dumps(row | more if pairs else row))
    return "\n".join(rows) + "\n"


def save_texts(root: Path) -> Path:
    for name, pairs in (("cola", False), ("rte", True), ("mrpc", True)):
        for split in ("train", "validation"):
            written(root / name / f"{split}.jsonl", text_rows(20, pairs=pairs))
    return root


def plain_text_accuracy(folder: Path, rows: Path, pair: bool, order: list[int]) -> float:
    """Each row through the whole classifier, one by one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        texts = [row["sentence1"], row["sentence2"]] if pair else [row["sentence"]]
        inputs = tokenizer(*texts, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0][order]
        right.append(int(logits.argmax()) == row["label"])
    return sum(right) / len(right)


def test_a_text_suite_measures_what_the_classifiers_find(tmp_path: Path) -> None:
    root = save_texts(tmp_path / "data")
    experts = {
        "cola": save_classifier(tmp_path / "cola", "bert", ["acceptable", "unacceptable"], 1),
        "rte": save_classifier(tmp_path / "rte", "bert", ["entailment", "not_entailment"], 2),
        "mrpc": save_classifier(tmp_path / "mrpc", "bert", ["equivalent", "not_equivalent"], 3),
    }
    found = magmerge.suite(
        "glue8", tmp_path / "out", base=experts["cola"], data=root, tasks=list(experts),
        experts=experts,
    )  # fmt: skip
    names = ["cola", "cola-accuracy", "mrpc", "mrpc-f1", "rte"]
    assert [one.name for one in found.tasks] == names
    assert [one.metric for one in found.tasks] == [
        "matthews", "accuracy", "accuracy", "f1", "accuracy",
    ]  # fmt: skip
    assert yaml.safe_load(found.file.read_text())["model"] == {
        "class": "AutoModel",
        "features": "pooler",
    }
    for name, entry, pair, order in (
        ("cola", "cola-accuracy", False, [1, 0]),
        ("rte", "rte", True, [0, 1]),
        ("mrpc", "mrpc", True, [1, 0]),
    ):
        rows = root / name / "validation.jsonl"
        scores = magmerge.evaluate(experts[name], suite=found.file, tasks=[entry])
        wanted = plain_text_accuracy(experts[name], rows, pair, order)
        assert (scores[entry].score, scores[entry].expert) == (wanted, wanted)


def test_robertas_head_has_a_dense_layer_and_no_pooler(tmp_path: Path) -> None:
    from transformers import RobertaModel

    root = save_texts(tmp_path / "data")
    expert = save_classifier(tmp_path / "rte", "roberta", ["entailment", "not_entailment"], 2)
    whole = tmp_path / "whole"
    RobertaModel.from_pretrained(expert).save_pretrained(whole)
    with pytest.warns(MagmergeWarning, match="has no pooler"):
        found = magmerge.suite(
            "glue8", tmp_path / "out", base=expert, data=root, tasks=["rte"],
            experts={"rte": expert},
        )  # fmt: skip
    wanted = plain_text_accuracy(expert, root / "rte" / "validation.jsonl", True, [0, 1])
    assert magmerge.evaluate(whole, suite=found.file)["rte"].score == wanted
