"""Searches that go on: after a kill, with more trials, beside others; and recipes as text."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.studies.tuning.recipes import (
    recipe,
    without_times,
    write,
)

import magmerge
from magmerge.core.errors import (
    OutputError,
    ParameterError,
)
from magmerge.core.marks import Choices
from magmerge.studies.tuning import Trial, TuneResult

pytest.importorskip("optuna")
LAMBDA = {"method": "task_arithmetic", "params": {"lambda": "!tune [0.1, 2.5]"}}


def test_a_gain_within_noise_is_told() -> None:
    def result(gain: float | None, error: float | None) -> TuneResult:
        one = Trial(0, {})
        return TuneResult(
            (one,), one, one, gain, error, 10, {}, "accuracy", True, "", None, None, 0.0
        )

    assert result(0.01, 0.02).in_noise
    assert not result(0.05, 0.02).in_noise
    assert not result(None, None).in_noise


KILLED = """
import os, signal, sys
import magmerge
def each(trial, best):
    if trial.number == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
magmerge.tune(sys.argv[1], sys.argv[2], suite=sys.argv[3], trials=14, each=each)
"""


def test_after_a_kill_the_search_goes_on_as_if_nothing_had_been(
    suite: Path, tmp_path: Path
) -> None:
    fields = {
        "method": "!tune [task_arithmetic, ties]",
        "params": {"lambda": "!tune [0.1, 2.5]", "density": "!tune {low: 0.1, high: 1.0}"},
    }
    path = write(suite, tmp_path, **fields)
    whole = magmerge.tune(path, tmp_path / "whole", suite=suite, trials=14)
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "out"), str(suite), "11"]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    file = tmp_path / "out.tune" / "trials.jsonl"
    assert len(without_times(file)) == 13
    # A kill may come while a line is written.
    cut = file.read_text()
    file.write_text(cut[: -len(cut.splitlines()[-1]) // 2])
    with pytest.raises(OutputError, match="a search is there already"):
        magmerge.tune(path, tmp_path / "out", suite=suite, trials=14)
    gone_on = magmerge.tune(path, tmp_path / "out", suite=suite, trials=14, resume=True)
    lines = without_times(tmp_path / "whole.tune" / "trials.jsonl")
    assert without_times(file)[1:] == lines[1:]
    assert gone_on.best.values == whole.best.values
    assert (gone_on.gain, gone_on.error) == (whole.gain, whole.error)
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert both[0] == both[1]


def test_a_finished_search_is_made_longer_but_not_another(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, **LAMBDA)
    short = magmerge.tune(path, suite=suite, trials=2)
    longer = magmerge.tune(path, suite=suite, trials=4, resume=True)
    assert [t.values for t in longer.trials[:2]] == [t.values for t in short.trials]
    assert len(longer.trials) == 4
    heard: list[str] = []
    machine = magmerge.Machine(progress=lambda label, done, total: heard.append(label))
    magmerge.tune(path, suite=suite, trials=5, resume=True, machine=machine)
    assert set(heard) == {"trials"}
    with pytest.raises(ParameterError, match="another search: rows"):
        magmerge.tune(path, suite=suite, trials=4, resume=True, rows=5)
    file = tmp_path / "recipe.tune" / "trials.jsonl"
    file.write_text("something else\n")
    with pytest.raises(ParameterError, match="no file of a search"):
        magmerge.tune(path, suite=suite, trials=1, resume=True)
    assert len(magmerge.tune(path, suite=suite, trials=1, overwrite=True).trials) == 1


def test_two_searches_of_one_folder_do_not_mix(suite: Path, tmp_path: Path) -> None:
    path = write(suite, tmp_path, **LAMBDA)

    def again(trial: Trial, _: Trial | None) -> None:
        if trial.number == 0:
            with pytest.raises(OutputError, match="another magmerge run"):
                magmerge.tune(path, suite=suite, trials=1, resume=True)

    magmerge.tune(path, suite=suite, trials=1, each=again)


def test_a_recipe_as_text_leaves_nothing_behind(suite: Path, tmp_path: Path) -> None:
    text = recipe(suite.parent, **LAMBDA)
    found = magmerge.tune(text, suite=suite, trials=2, sampler="random", tasks=["b"])
    assert found.folder is None
    assert [*found.rows] == ["b"]
    assert magmerge.Recipe.from_yaml(found.recipe).params == {
        "lambda": found.best.values["params.lambda"]
    }
    content = json.loads(json.dumps(found.document()))
    assert content["trials"][1]["values"] == found.trials[1].values
    assert content["folder"] is None


def test_choices_are_compared_as_they_are_written() -> None:
    assert 1 not in Choices((True, "1"))
    assert [0.5, 1] in Choices(([0.5, 1], 2))


def test_a_recipe_of_mergekits_is_searched_as_it_stands(suite: Path, tmp_path: Path) -> None:
    pytest.importorskip("magmerge.core.mergekit_dialect")
    folder, path = suite.parent, tmp_path / "recipe.yml"
    path.write_text(
        f"merge_method: !tune [task_arithmetic, ties]\nbase_model: {folder / 'base'}\nmodels:\n"
        f"  - model: {folder / 'a'}\n    parameters: {{weight: !tune [0.1, 2.0]}}\n"
        f"  - model: {folder / 'b'}\n    parameters: {{weight: 1.0}}\ndtype: float32\n"
    )
    found = magmerge.tune(path, tmp_path / "out", suite=suite, trials=4)
    assert [*found.best.values] == ["merge_method", "models[0].parameters.weight"]
    assert "merge_method:" in found.recipe
    scores = magmerge.evaluate(tmp_path / "out", suite=suite, split="validation")
    assert scores.mean == pytest.approx(found.best.score)
