"""Heads cut out of classifiers: the same logits as before, in the task's order of classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magmerge.core.errors import CheckpointError, MagmergeError, ParameterError
from magmerge.evaluation.suites.classifiers import cut_head
from magmerge.evaluation.suites.definitions import task
from tests.evaluation.suites.clips import save_classifier

MNLI = task("text", "mnli")


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def encoded(folder: Path, ids: torch.Tensor, features: str) -> torch.Tensor:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return output.pooler_output if features == "pooler" else output.last_hidden_state[:, 0]


@pytest.mark.parametrize(("family", "features"), [("bert", "pooler"), ("roberta", "cls")])
def test_a_head_on_the_encoder_gives_the_classifiers_logits(
    tmp_path: Path, family: str, features: str
) -> None:
    labels = ["contradiction", "entailment", "neutral"]
    expert = save_classifier(tmp_path / "expert", family, labels)
    cut = cut_head("mnli", MNLI, expert)
    assert (cut.features, cut.note, cut.whole) == (features, None, family == "bert")
    ids = torch.tensor([[2, 5, 9, 4, 3], [2, 7, 7, 8, 3]])
    found = encoded(expert, ids, features)
    if "dense.weight" in cut.tensors:
        found = torch.tanh(found @ cut.tensors["dense.weight"].T + cut.tensors["dense.bias"])
    found = found @ cut.tensors["weight"].T + cut.tensors["bias"]
    wanted = logits_of(expert, ids)[:, [labels.index(name) for name in MNLI.classes]]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_numbered_labels_are_taken_as_the_data_set_has_them(tmp_path: Path) -> None:
    expert = save_classifier(tmp_path / "expert", "bert", 3)
    cut = cut_head("mnli", MNLI, expert)
    stored = load_file(expert / "model.safetensors")
    assert torch.equal(cut.tensors["weight"], stored["classifier.weight"])
    assert "does not name its labels" in (cut.note or "")


def test_a_regression_has_one_row(tmp_path: Path) -> None:
    cut = cut_head("stsb", task("text", "stsb"), save_classifier(tmp_path / "expert", "bert", 1))
    assert cut.tensors["weight"].shape[0] == 1
    assert cut.note is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["entailment", "neutral", "what"], "label 'what' is none of the task's classes"),
        (["entailment", "neutral", "Neutral"], "label 'Neutral' is there twice"),
        (["LABEL_1", "LABEL_0", "LABEL_2"], "numbered labels are not in order"),
    ],
)
def test_labels_that_cannot_be_told_are_an_error(
    tmp_path: Path, labels: list[str], message: str
) -> None:
    expert = save_classifier(tmp_path / "expert", "bert", labels)
    with pytest.raises(CheckpointError, match=message) as caught:
        cut_head("mnli", MNLI, expert)
    assert "id2label" in caught.value.remedy


@pytest.mark.parametrize("names", [{"0": 1}, {"0": "a"}, {"x": "a", "y": "b", "z": "c"}])
def test_a_broken_id2label_is_an_error(tmp_path: Path, names: dict[str, object]) -> None:
    expert = save_classifier(tmp_path / "expert", "bert", 3)
    config = json.loads((expert / "config.json").read_text())
    (expert / "config.json").write_text(json.dumps({**config, "id2label": names}))
    with pytest.raises(CheckpointError, match="cannot be told"):
        cut_head("mnli", MNLI, expert)


def test_experts_that_have_no_such_head(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="its head has 2 rows, and the task has 3"):
        cut_head("mnli", MNLI, save_classifier(tmp_path / "two", "bert", 2))
    with pytest.raises(ParameterError, match="its head has 2 rows, and the task needs 1"):
        cut_head("stsb", task("text", "stsb"), tmp_path / "two")
    with pytest.raises(CheckpointError, match="no head that can be cut off: a distilbert"):
        cut_head("mnli", MNLI, save_classifier(tmp_path / "small", "distilbert", 3))
    with pytest.raises(ParameterError, match="it is no folder"):
        cut_head("mnli", MNLI, tmp_path / "nowhere")


def test_a_head_that_does_not_fit_together(tmp_path: Path) -> None:
    expert = save_classifier(tmp_path / "expert", "bert", 3)
    tensors = load_file(expert / "model.safetensors")
    tensors["classifier.bias"] = torch.zeros(2)
    save_file(tensors, expert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MagmergeError, match="does not fit together"):
        cut_head("mnli", MNLI, expert)
