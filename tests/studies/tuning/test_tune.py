"""tune(): what it finds, which rows it looks at, what it keeps, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.studies.tuning.recipes import (
    TRUE_LAMBDA,
    change_suite,
    recipe,
    write,
)

import magmerge
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    MagmergeWarning,
    OutputError,
    ParameterError,
    UnknownNameError,
)
from magmerge.data import sources
from magmerge.studies.tuning.space import read_space

pytest.importorskip("optuna")
LAMBDA = {"method": "task_arithmetic", "params": {"lambda": "!tune [0.1, 2.5]"}}


def test_the_search_finds_the_lambda_that_made_the_labels(suite: Path, tmp_path: Path) -> None:
    path, out, heard = write(suite, tmp_path, **LAMBDA), tmp_path / "out", []
    found = magmerge.tune(
        path, out, suite=suite, trials=15, each=lambda trial, best: heard.append((trial, best))
    )
    assert found.default.values == {"params.lambda": 0.3}
    assert found.best.score is not None
    assert found.default.score is not None
    assert found.best.score > found.default.score
    assert found.best.values["params.lambda"] == pytest.approx(TRUE_LAMBDA, abs=0.3)
    assert found.gain == pytest.approx(found.best.score - found.default.score)
    assert [trial.number for trial, _ in heard] == list(range(15))
    assert heard[-1][1] == found.best
    assert (found.rising, found.words, found.count) == (True, "mean accuracy of 2 tasks", 120)
    # What is written is what was measured, and best.yml makes it again.
    scores = magmerge.evaluate(out, suite=suite, split="validation")
    assert scores.mean == pytest.approx(found.best.score)
    assert {task.task: task.score for task in scores.tasks} == pytest.approx(found.best.tasks)
    folder = tmp_path / "out.tune"
    assert found.folder == folder
    again = magmerge.run(folder / "best.yml", tmp_path / "again")
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
    assert again.recipe.params["lambda"] == found.best.values["params.lambda"]
    record = json.loads((out / "magmerge.json").read_text())
    assert record["recipe"]["params"]["lambda"] == found.best.values["params.lambda"]
    names = ["best.yml", "trials.jsonl", "trials.png", "trials.svg"]
    assert sorted(file.name for file in folder.iterdir()) == names


def test_no_row_of_test_is_looked_at(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (suite.parent / "data" / f"{name}.broken.jsonl").write_text("no JSON\n")
    other = change_suite(suite, test="data/{name}.missing.jsonl")
    opened: list[str] = []
    own = sources._open_file

    def spy(path: Path, split: str | None) -> Any:
        opened.append(path.name)
        return own(path, split)

    monkeypatch.setattr(sources, "_open_file", spy)
    path = write(suite, tmp_path, **LAMBDA)
    first = magmerge.tune(path, suite=other, trials=2)
    broken = change_suite(suite, test="data/{name}.broken.jsonl")
    second = magmerge.tune(path, suite=broken, trials=2, overwrite=True)
    assert set(opened) == {"a.validation.jsonl", "b.validation.jsonl"}
    scores = [[trial.score for trial in found.trials] for found in (first, second)]
    assert scores[0] == scores[1]


def test_a_suite_that_names_no_base(suite: Path, tmp_path: Path) -> None:
    """Config and tokenizer are the merge's own, which are no files yet."""
    path, other = write(suite, tmp_path, **LAMBDA), suite.with_name("bare.yaml")
    content = yaml.safe_load(suite.read_text())
    other.write_text(yaml.safe_dump({k: v for k, v in content.items() if k != "base"}))
    scores = [
        [trial.score for trial in magmerge.tune(path, suite=s, trials=2, overwrite=True).trials]
        for s in (suite, other)
    ]
    assert scores[0] == scores[1]


def test_training_rows_where_there_are_none_of_validation(suite: Path, tmp_path: Path) -> None:
    path, other = write(suite, tmp_path, **LAMBDA), change_suite(suite, validation=None)
    found = magmerge.tune(path, suite=other, trials=1)
    assert found.rows == dict.fromkeys("ab", "all 90 rows of its train split")
    few = magmerge.tune(path, suite=other, trials=1, rows=20, seed=3, overwrite=True)
    assert few.rows["a"] == "20 rows of its train split, drawn by seed 3"
    assert few.count == 40


def test_a_suite_of_test_rows_alone_is_refused(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, **LAMBDA)
    other = change_suite(suite, validation=None, train=None)
    with pytest.raises(ParameterError, match="no validation rows and no training rows"):
        magmerge.tune(path, suite=other, trials=1)
    for split in ("test", "my_test"):
        with pytest.raises(MagmergeError, match="names the test split"):
            magmerge.tune(path, suite=other, trials=1, split=split)
    # The remedies: validation rows, or a split that may be looked at.
    kept = change_suite(suite, validation=None, train=None, calibration="data/{name}.train.jsonl")
    assert magmerge.tune(path, suite=kept, trials=1, split="calibration").count == 180
    with pytest.raises(MagmergeError, match="never looks at test rows"):
        magmerge.tune(path, suite=change_suite(suite, validation="data/{name}.test.jsonl"))


def test_the_same_recipe_is_not_run_again(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magmerge.studies.tuning import merged_models

    runs = []
    own = merged_models.run
    monkeypatch.setattr(
        merged_models, "run", lambda recipes, **how: (runs.append(recipes), own(recipes, **how))[1]
    )
    path = write(suite, tmp_path, method="!tune [average, task_arithmetic]")
    found = magmerge.tune(path, suite=suite, trials=5)
    assert len(runs) == 2
    same = [trial.same_as for trial in found.trials]
    assert sum(own is None for own in same) == 2
    for trial in found.trials:
        if trial.same_as is not None:
            assert trial.score == found.trials[trial.same_as].score


def test_a_trial_that_fails_is_told_and_left_behind(suite: Path, tmp_path: Path) -> None:
    path = write(
        suite, tmp_path, method="!tune [average, ties]",
        params={"density": "!tune {low: 0.5, high: 3.0, default: 2.0}"},
    )  # fmt: skip
    found = magmerge.tune(path, suite=suite, trials=8, seed=1)
    failed = [trial for trial in found.trials if trial.score is None]
    assert failed
    assert all("density" in str(trial.fault) for trial in failed)
    assert all(trial.values["params.density"] > 1 for trial in failed)
    assert found.best.score is not None


def test_where_all_fail_the_first_reason_is_told(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, method="ties", params={"density": "!tune [2.0, 3.0]"})
    with pytest.raises(MagmergeError, match=r"all 3 trials failed; the first: .*density"):
        magmerge.tune(path, suite=suite, trials=3)
    (tmp_path / "recipe.yml").write_text(
        path.read_text().replace("[2.0, 3.0]", "[0.2, 0.8]").replace("/base", "/bass")
    )
    with pytest.raises(CheckpointError, match="no such file"):
        magmerge.tune(path, suite=suite, trials=3, overwrite=True)


def test_parameters_that_a_method_does_not_take_are_left_out(suite: Path, tmp_path: Path) -> None:
    fields = {
        "method": "!tune [tsv_m, ties]",
        "params": {"density": "!tune [0.1, 1.0]", "lambda": "!tune [0.1, 2.0]"},
        "calibrate": "!tune [null, {method: wsc, params: {target: sphere}}]",
    }
    path = write(suite, tmp_path, **fields)
    found = magmerge.tune(path, suite=suite, trials=8)
    for trial in found.trials:
        assert ("params.density" in trial.values) == (trial.values["method"] == "ties")
        assert trial.score is not None
    assert {trial.values["method"] for trial in found.trials} == {"tsv_m", "ties"}
    assert found.default.values == {"method": "tsv_m", "params.lambda": 1.0, "calibrate": None}
    with pytest.raises(ParameterError, match="no method that is searched takes 'density'"):
        read_space(
            recipe(suite.parent, method="!tune [tsv_m, average]", params=fields["params"]), "r"
        )
    with pytest.raises(UnknownNameError, match="tie"):
        read_space(recipe(suite.parent, method="!tune [tie, average]"), "r")


def test_what_speaks_of_a_calibration_goes_with_it(suite: Path, tmp_path: Path) -> None:
    data = {name: str(suite.parent / "data" / f"{name}.train.jsonl") for name in "ab"}
    fields = {
        "method": "average",
        "calibrate": "!tune {choices: [null, fsc, {method: wsc, params: {target: sphere}}]}",
        "skip": ["*attention*"],
        "samples": {"data": data, "samples": "!tune [2, 4]"},
    }
    path = write(suite, tmp_path, **fields)
    found = magmerge.tune(path, suite=suite, trials=9)
    assert all(trial.score is not None for trial in found.trials)
    kinds = {json.dumps(trial.values["calibrate"]): trial for trial in found.trials}
    assert len(kinds) == 3
    for trial in found.trials:
        assert ("samples.samples" in trial.values) == (trial.values["calibrate"] == "fsc")


def test_several_documents(suite: Path, tmp_path: Path) -> None:
    one, two = (suite.parent / name for name in "ab")
    base = suite.parent / "base"
    path = tmp_path / "recipe.yml"
    path.write_text(
        f"name: first\nbase: {base}\nexperts: {{a: {one}}}\nmethod: task_arithmetic\n"
        "params: {lambda: !tune [0.5, 1.5]}\n---\n"
        f"base: {base}\nexperts: {{m: first, b: {two}}}\nmethod: task_arithmetic\n"
        "params: {lambda: !tune [0.5, 1.5]}\n"
    )
    found = magmerge.tune(path, tmp_path / "out", suite=suite, trials=3)
    assert [*found.best.values] == ["1:params.lambda", "2:params.lambda"]
    scores = magmerge.evaluate(tmp_path / "out", suite=suite, split="validation")
    assert scores.mean == pytest.approx(found.best.score)
    data = {name: suite.parent / "data" / f"{name}.train.jsonl" for name in "ab"}
    near = magmerge.tune(path, unlabelled=data, trials=1, rows=5)
    assert sorted(near.default.tasks) == ["a", "b"]


def test_where_the_first_trial_begins(suite: Path) -> None:
    def start(**fields: Any) -> dict[str, Any]:
        return read_space(recipe(suite.parent, **fields), "r").start()

    mark = "!tune {low: 0.1, high: 0.9, default: 0.7}"
    assert start(method="ties", params={"density": mark}) == {"params.density": 0.7}
    assert start(method="ties", params={"density": "!tune [0.1, 0.9]"}) == {"params.density": 0.2}
    assert start(method="ties", params={"density": "!tune [0.4, 0.8]"}) == {
        "params.density": pytest.approx(0.6)
    }
    weights = ["!tune [0.0, 1.0]", 1.0]
    assert start(method="ties", params={"weights": weights}) == {"params.weights[0]": 0.5}
    calibrate = [{"method": "wsc", "params": {"target": "!tune [sphere, ellipsoid]"}}]
    assert start(method="ties", calibrate=calibrate) == {"calibrate[0].params.target": "ellipsoid"}
    assert start(method="ties", seed="!tune [0, 5]") == {"seed": 0}


def test_whole_numbers_where_fractions_are_taken_are_noted(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, method="ties", params={"lambda": "!tune [1, 2]"})
    with pytest.warns(MagmergeWarning, match=r"whole numbers; .* write !tune \[1.0, 2.0\]"):
        found = magmerge.tune(path, suite=suite, trials=3)
    assert {trial.values["params.lambda"] for trial in found.trials} == {1, 2}


def test_a_recipe_without_marks_and_other_mistakes(suite: Path, tmp_path: Path) -> None:
    plain = write(suite, tmp_path, method="ties")
    with pytest.raises(ParameterError, match="nothing is marked"):
        magmerge.tune(plain, suite=suite)
    path = write(suite, tmp_path, **LAMBDA)
    with pytest.raises(ParameterError, match="nothing to measure by"):
        magmerge.tune(path)
    with pytest.raises(ParameterError, match="exclude each other"):
        magmerge.tune(path, suite=suite, perplexity="x.txt")
    with pytest.raises(ParameterError, match="0 trials"):
        magmerge.tune(path, suite=suite, trials=0)
    with pytest.raises(UnknownNameError, match="no sampler"):
        magmerge.tune(path, suite=suite, sampler="tpo")
    with pytest.raises(UnknownNameError, match="no metric"):
        magmerge.tune(path, suite=suite, metric="meen")
    with pytest.raises(TypeError, match="sampel"):
        magmerge.tune(path, suite=suite, sampel=3)
    with pytest.raises(OutputError):
        magmerge.tune(path, suite.parent / "base", suite=suite)
    (tmp_path / "out.tune").mkdir()
    (tmp_path / "out.tune" / "best.yml").write_text("mine")
    with pytest.raises(OutputError, match=r"other things than a search: best\.yml"):
        magmerge.tune(path, tmp_path / "out", suite=suite, overwrite=True)
    assert (tmp_path / "out.tune" / "best.yml").read_text() == "mine"


def test_relative_and_worst(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, **LAMBDA)
    experts = {
        name: magmerge.evaluate(suite.parent / name, suite=suite, split="validation", tasks=[name])
        for name in "ab"
    }
    found = magmerge.tune(path, suite=suite, trials=2, metric="relative")
    for trial in found.trials:
        shares = [trial.tasks[name] / experts[name].tasks[0].score for name in "ab"]
        assert trial.score == pytest.approx(sum(shares) / 2)
    worst = magmerge.tune(path, suite=suite, trials=2, metric="worst", overwrite=True)
    assert [t.score for t in worst.trials] == [min(t.tasks.values()) for t in worst.trials]


def test_gain_and_error_are_those_of_a_paired_bootstrap(suite: Path, tmp_path: Path) -> None:
    """Against another bootstrap, with draws of its own, of each row's own outcome."""
    path, out = write(suite, tmp_path, **LAMBDA), tmp_path / "out"
    found = magmerge.tune(path, out, suite=suite, trials=6)
    magmerge.merge(
        base=suite.parent / "base", experts={n: suite.parent / n for n in "ab"},
        method="task_arithmetic", params={"lambda": 0.3}, out=tmp_path / "default",
    )  # fmt: skip
    from tests.studies.tuning.recipes import labels_of

    variance = 0.0
    for name in "ab":
        lines = (suite.parent / "data" / f"{name}.validation.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        head = suite.parent / "heads" / f"{name}.safetensors"
        right = []
        for model in (tmp_path / "default", out):
            answers = labels_of(model, _state(model), head, [row["text"] for row in rows])
            right.append([a == row["label"] for a, row in zip(answers, rows, strict=True)])
        apart = torch.tensor(right[1]).double() - torch.tensor(right[0]).double()
        variance += float(apart.var(correction=0)) / len(rows) / 4
    assert found.error == pytest.approx(variance**0.5, rel=0.15)


def _state(model: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")
