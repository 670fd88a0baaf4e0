"""What a recipe would do: told first, and no file is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import magmerge
from magmerge.core.errors import CheckpointError, ParameterError, RecipeError, StructureError
from magmerge.report.plan_text import trial_text
from tests.conftest import CommandLine, State

ONE = """\
base: base
experts: [expert0, expert1]
method: ties
calibrate: wsc
"""
TWO = """\
name: pair
base: base
experts: [expert0, expert1]
method: average
output: {dtype: bfloat16}
---
base: base
experts: {both: pair, third: expert2}
method: ties
calibrate: wsc
"""


@pytest.fixture
def home(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yml").write_text(ONE)
    (tmp_path / "two.yaml").write_text(TWO)
    return tmp_path


def test_a_recipe_is_planned_summary_first(home: Path, magmerge_cli: CommandLine) -> None:
    before = sorted(home.iterdir())
    shown = magmerge_cli("plan", "one.yml", "out")
    assert shown.code == 0, shown.err
    first, _, rest = shown.out.partition("\nplan\n")
    for words in ("ties + wsc", "reads base base (6 tensors, ", "reads expert expert1",
                  "6 tensors: merged 6; calibrated 3", "disk ", "peak memory"):  # fmt: skip
        assert words in first, words
    assert "layers.0.conv.weight" in rest
    assert "time about" not in shown.out
    assert sorted(home.iterdir()) == before
    direct = magmerge.plan(
        base="base", experts=["expert0", "expert1"], method="ties", calibrate="wsc"
    )
    (document,) = magmerge.plan_recipe("one.yml")
    assert document.plan is not None
    assert document.plan.steps == direct.steps
    assert document.plan.memory == direct.memory


def test_a_trial_measures_and_tells_what_it_measured(home: Path, magmerge_cli: CommandLine) -> None:
    shown = magmerge_cli("plan", "one.yml", "--trial")
    assert "time about" in shown.out
    assert "6 tensors (" in shown.out
    told = magmerge_cli("plan", "one.yml", "--trial", "--json").json
    trial = told["trial"]
    assert trial["tensors"] == 6
    assert (
        trial["measured"]
        == trial["total"]
        == sum(4 * size for size in (11 * 24, 24 * 24, 48 * 24, 32 * 30, 24, 11 * 24))
    )
    assert 0 < trial["least"] < trial["seconds"] < trial["most"]
    assert told["inputs"][0] == {
        "role": "base", "source": "base", "tensors": 6, "size": trial["total"],
    }  # fmt: skip
    options = ("--base", "base", "--expert", "expert0", "--expert", "expert1")
    assert magmerge_cli("plan", *options, "--trial", "--json").json["trial"]["tensors"] == 6
    assert magmerge_cli("plan", *options, "--json").json["trial"] is None
    assert sorted(path.name for path in home.iterdir() if "out" in path.name) == []


def test_a_trial_that_ends_early_tells_a_span(home: Path) -> None:
    (document,) = magmerge.plan_recipe("one.yml", seconds=1e-9)
    trial = document.trial
    assert trial is not None
    assert trial.tensors == 1
    assert trial.measured < trial.total
    assert trial.least < trial.most
    assert "1 tensors" in trial_text(trial)


@pytest.mark.filterwarnings("ignore:pair has bfloat16:magmerge.core.errors.MagmergeWarning")
def test_documents_are_planned_with_the_headers_of_results(
    home: Path, magmerge_cli: CommandLine, base: State
) -> None:
    first, second = magmerge.plan_recipe("two.yaml")
    assert first.plan is not None
    assert second.plan is not None
    assert [entry.source for entry in second.inputs] == ["base", "pair", "expert2"]
    assert second.inputs[1].size * 2 == second.inputs[0].size
    assert any("pair has bfloat16" in warning for warning in second.plan.warnings)
    done = magmerge.run("two.yaml", "out")
    assert [step.spec for step in second.plan.steps] == [step.spec for step in done.plan.steps]
    assert [step.kind for step in second.plan.steps] == [step.kind for step in done.plan.steps]
    told = magmerge_cli("plan", "two.yaml", "--json").json["documents"]
    assert [document["name"] for document in told] == ["pair", None]
    shown = magmerge_cli("plan", "two.yaml")
    assert shown.out.index("pair: average") < shown.out.index("ties + wsc")


def test_faults_of_later_documents_are_found(home: Path, magmerge_cli: CommandLine) -> None:
    wrong = TWO.replace("method: ties", "method: tyes").replace("expert2", "expert9")
    (home / "two.yaml").write_text(wrong)
    with pytest.raises(RecipeError) as raised:
        magmerge.plan_recipe("two.yaml")
    assert [error.source for error in raised.value.errors] == ["two.yaml:8", "two.yaml:9"]
    (home / "expert2" / "model.safetensors").write_bytes(
        (home / "expert1" / "model.safetensors").read_bytes()
    )
    (home / "two.yaml").write_text(TWO.replace("base: base\nexperts: {", "base: small\nexperts: {"))
    assert "small: no such file" in magmerge_cli("plan", "two.yaml").err
    save = magmerge.merge(base={"a.weight": base_of()}, experts=[{"a.weight": base_of() + 1}])
    save.save("small")
    with pytest.raises(StructureError):
        magmerge.plan_recipe("two.yaml")


def base_of() -> object:
    import torch

    return torch.ones(3, 3)


def test_the_plan_takes_options_or_a_recipe(home: Path, magmerge_cli: CommandLine) -> None:
    shown = magmerge_cli("plan", "one.yml", "--method", "ties")
    assert shown.code == 1
    assert "--method is given beside a recipe" in shown.err
    assert "name each with --expert, or give a recipe" in magmerge_cli("plan").err
    assert "2 outputs are given" in magmerge_cli("plan", "one.yml", "a", "b").err
    with pytest.raises(ParameterError, match="cannot be read"):
        magmerge.plan_recipe("none.yml")
    magmerge.run("one.yml", "out")
    assert "exists already" in magmerge_cli("plan", "one.yml", "out").err
    assert magmerge_cli("plan", "one.yml", "out", "--yes").code == 0


def test_what_is_not_made_yet_is_not_read(home: Path) -> None:
    from magmerge.checkpoints.planned import PlannedCheckpoint

    with pytest.raises(CheckpointError, match="not made yet"):
        PlannedCheckpoint("pair", {}, {}, None).read_part("a", 0, 1)


def test_an_adapter_that_is_not_made_yet_ends_the_plan(home: Path) -> None:
    text = TWO.replace("output: {dtype: bfloat16}", "output: {rank: 2}")
    (home / "two.yaml").write_text(text)
    first, second = magmerge.plan_recipe("two.yaml")
    assert first.plan is not None
    assert second.plan is None
    assert second.reason == "it reads pair, an adapter that is not made yet"
    json.dumps(second.reason)
