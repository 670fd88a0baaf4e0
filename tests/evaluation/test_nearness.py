"""How near models come to a suite's experts on unlabelled rows, through the front door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.evaluation import open_suite
from magmerge.evaluation.nearness_table import mean_of
from tests.conftest import call
from tests.evaluation.models import bert_suite, save_llama, save_rows, save_suite, texts


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_suite(tmp_path_factory.mktemp("bert"))


def halfway(suite: Path) -> dict[str, torch.Tensor]:
    base, expert = (
        load_file(suite.parent / name / "model.safetensors") for name in ("base", "expert")
    )
    return {name: (tensor + expert[name]) / 2 for name, tensor in base.items()}


def test_against_a_slow_loop(suite: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    scores = magmerge.evaluate(halfway(suite), suite=suite, nearness=70)
    (task,) = [task for task in scores.nearness if task.task == "three"]
    models = [BertModel.from_pretrained(suite.parent / "base").eval() for _ in range(3)]
    models[0].load_state_dict(halfway(suite), strict=False)
    models[1].load_state_dict(
        load_file(suite.parent / "expert" / "model.safetensors"), strict=False
    )
    tokenizer = AutoTokenizer.from_pretrained(suite.parent / "base")
    head = load_file(suite.parent / "heads" / "three.safetensors")
    errors, cosines, divergences = [], [], []
    for line in (suite.parent / "data" / "three.validation.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], return_tensors="pt")
        with torch.no_grad():
            own, expert, base = (
                model(**ids).last_hidden_state[0].mean(dim=0).double() for model in models
            )
        errors.append(float((own - expert).norm() / (expert - base).norm()))
        cosines.append(float(torch.cosine_similarity(own - base, expert - base, dim=0)))
        p, q = (
            (head["weight"].double() @ f + head["bias"].double()).softmax(0) for f in (expert, own)
        )
        divergences.append(float((p * (p / q).log()).sum()))
    assert task.count == 70
    assert task.split == "validation"
    assert task.error == pytest.approx(sum(errors) / 70, rel=1e-4)
    assert task.cosine == pytest.approx(sum(cosines) / 70, rel=1e-4)
    assert task.kl == pytest.approx(sum(divergences) / 70, rel=1e-3)


def test_base_and_expert_are_the_ends_and_threads_do_not_matter(suite: Path) -> None:
    models = [suite.parent / "base", suite.parent / "expert", halfway(suite)]
    found = [magmerge.evaluate(models, suite=suite, threads=count) for count in (1, 2)]
    base, expert, merge = found[0]
    assert [row.nearness for row in found[0]] == [row.nearness for row in found[1]]
    assert [task.error for task in base.nearness] == pytest.approx([1, 1])
    assert [task.kl for task in base.nearness] == [task.base_kl for task in merge.nearness]
    assert [task.error for task in expert.nearness] == [0, 0]
    assert [task.agreement for task in expert.nearness] == [1, 1]
    assert 0 < mean_of(merge.nearness, "error") < 1
    assert "nearness" not in magmerge.evaluate(models[0], suite=suite, nearness=0).document()


def test_a_language_model_is_compared_token_by_token(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    save_llama(tmp_path / "expert", seed=1)
    for split in ("test", "train"):
        rows = [{"text": text} for text in texts(20, seed=len(split))]
        save_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    task = {
        "metric": "perplexity", "expert": "expert",
        "data": {split: f"data/{split}.jsonl" for split in ("test", "train")},
    }  # fmt: skip
    path = save_suite(tmp_path, {"words": task}, model={"class": "AutoModelForCausalLM"})
    (near,) = magmerge.evaluate(tmp_path / "base", suite=open_suite(path)).nearness
    assert near.split == "train"
    assert near.error == pytest.approx(1)
    assert near.kl == near.base_kl > 0
    common = {"suite": path, "memory": "100KB"}
    with pytest.warns(MagmergeWarning, match="--nearness 0"):
        bare = magmerge.evaluate(tmp_path / "base", **common, out=tmp_path / "bare.json")
    assert bare.nearness == ()
    with pytest.raises(ParameterError, match="--nearness 0"):
        magmerge.evaluate(tmp_path / "base", **common, nearness=16, out=tmp_path / "asked.json")
    for name in ("bare", "asked"):
        (task,) = json.loads((tmp_path / f"{name}.json").read_text())["tasks"]
        assert task["score"] == bare["words"].score


def test_the_terminal_shows_them_beside_the_base(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(capsys, "evaluate", suite.parent / "expert", "--suite", suite, "--nearness", 4)
    lines = [line.split() for line in told.out.splitlines()]
    assert ["three", "0.000", "1.000", "1.000", "0.000", "100.0"] in lines
    assert ["the", "base", "1.000"] in [line[:3] for line in lines]
    assert "unlabelled rows: three 4 of validation" in told.out
    text = call(capsys, "evaluate", suite.parent / "expert", "--suite", suite, "--json").out
    assert [task["error"] for task in json.loads(text)["nearness"]] == [0, 0]
