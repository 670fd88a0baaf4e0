"""Searches without labels: the loss on texts, and how near the experts' outputs come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.models import save_rows, texts
from tests.studies.tuning.recipes import language_models, recipe, tuning_suite

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.studies.tuning import nearness

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamas")
    (folder / "recipe.yml").write_text(language_models(folder))
    (folder / "held.txt").write_text("\n".join(texts(20)))
    for number, name in enumerate("ab"):
        save_rows(folder / f"{name}.jsonl", [{"text": t} for t in texts(9, seed=number)])
    return folder


def test_the_mean_loss_on_a_file_of_texts(llamas: Path, tmp_path: Path) -> None:
    found = magmerge.tune(
        llamas / "recipe.yml", tmp_path / "out", perplexity=llamas / "held.txt", trials=4
    )
    assert not found.rising
    assert found.words == "loss in nats a token"
    assert found.rows == {"held": "all 20 rows of the file"}
    scores = magmerge.evaluate(tmp_path / "out", perplexity=[llamas / "held.txt"])
    assert found.best.score is not None
    assert torch.tensor(found.best.score).exp() == pytest.approx(scores.tasks[0].score)
    assert found.best.score == min(trial.score or 0.0 for trial in found.trials)
    assert found.gain is not None
    assert found.gain >= 0


def test_files_with_splits_and_of_test(llamas: Path, tmp_path: Path) -> None:
    rows = [{"text": t, "split": s} for t in texts(6) for s in ("test", "validation", "train")]
    file = save_rows(tmp_path / "rows.jsonl", rows)
    found = magmerge.tune(llamas / "recipe.yml", perplexity=file, trials=1, overwrite=True)
    assert found.rows == {"rows": "all 6 rows of its validation split"}
    other = tmp_path / "texts.test.txt"
    other.write_text("a b c\n")
    with pytest.raises(MagmergeError, match="never looks at test rows"):
        magmerge.tune(llamas / "recipe.yml", perplexity=other, trials=1, overwrite=True)
    with pytest.raises(MagmergeError, match="never looks at test rows"):
        magmerge.tune(llamas / "recipe.yml", unlabelled=other, trials=1, overwrite=True)


def reference(folder: Path, model: Any, name: str) -> float:
    """The mean divergence from the expert's next tokens, over that of the base, in float64."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    expert, base = (
        LlamaForCausalLM.from_pretrained(folder / own).double().eval() for own in (name, "base")
    )
    merged = LlamaForCausalLM.from_pretrained(folder / "base").double().eval()
    merged.load_state_dict({k: v.double() for k, v in model.items()}, strict=False)
    sums = {"merged": 0.0, "base": 0.0}
    for row in (folder / f"{name}.jsonl").read_text().splitlines():
        text = __import__("json").loads(row)["text"]
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            own = expert(ids).logits.log_softmax(-1)
            for key, other in (("merged", merged), ("base", base)):
                apart = own.exp() * (own - other(ids).logits.log_softmax(-1))
                sums[key] += float(apart.sum())
    return sums["merged"] / sums["base"]


def test_the_distance_to_each_expert_on_its_own_samples(llamas: Path, tmp_path: Path) -> None:
    data = {name: llamas / f"{name}.jsonl" for name in "ab"}
    found = magmerge.tune(
        llamas / "recipe.yml", tmp_path / "out", unlabelled=data, trials=3, rows=9
    )
    state = magmerge.run(tmp_path / "out.tune" / "best.yml").state_dict()
    for name in "ab":
        assert found.best.tasks[name] == pytest.approx(reference(llamas, state, name), rel=1e-3)
    assert found.words == "mean distance to the experts of 2 tasks"
    assert found.count == 18
    assert not found.rising


def test_one_expert_alone_is_no_distance_from_itself(tmp_path: Path) -> None:
    suite = tuning_suite(tmp_path)
    text = recipe(
        suite.parent, method="task_arithmetic",
        params={"weights": ["!tune [0.0, 1.0]", 0.0], "lambda": 1.0},
    )  # fmt: skip
    text = text.replace("!tune [0.0, 1.0]", "!tune {low: 0.0, high: 1.0, step: 0.5, default: 1.0}")
    data = {name: tmp_path / "data" / f"{name}.train.jsonl" for name in "ab"}
    found = magmerge.tune(text, unlabelled=data, trials=4)
    # Of features: the merge is the first expert, and to the second as far as the base or so.
    assert found.default.tasks["a"] == pytest.approx(0, abs=1e-6)
    nothing = next(t for t in found.trials if t.values["params.weights[0]"] == 0.0)
    assert nothing.tasks["a"] == pytest.approx(1)
    assert nothing.tasks["b"] == pytest.approx(1)


def test_what_unlabelled_samples_cannot_tell(llamas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = llamas / "recipe.yml", llamas / "a.jsonl"
    with pytest.raises(ParameterError, match="no share of theirs"):
        magmerge.tune(path, unlabelled=data, metric="relative", overwrite=True)
    with pytest.raises(MagmergeError, match="no expert"):
        magmerge.tune(path, unlabelled={"a": data, "c": data}, overwrite=True)
    monkeypatch.setattr(nearness, "SHARE", 1e-7)
    with pytest.raises(ParameterError, match="do not fit into memory"):
        magmerge.tune(path, unlabelled=data, trials=1, overwrite=True)
    # The remedies: fewer samples, or shorter ones.
    monkeypatch.setattr(nearness, "SHARE", 1e-6)
    magmerge.tune(path, unlabelled=data, trials=1, rows=1, max_length=4, overwrite=True)
