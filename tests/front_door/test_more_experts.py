"""One more expert to a merge that was made before, by the recipe beside it, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magmerge.core.recipe import Recipe
from magmerge.core.strengths import split_name
from tests.conftest import CommandLine, State, random_state, tuned

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
Models = dict[str, tuple[Path, State]]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    base = random_state(0)
    states = {"base": base, **{name: tuned(base, k) for k, name in enumerate("abc")}}
    made = {}
    for name, state in states.items():
        folder = tmp_path / name
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "tiny"}')
        made[name] = (folder, state)
    return made


def first(models: Models, out: Path, cli: CommandLine, *more: str) -> None:
    told = ("--base", models["base"][0], "--expert", models["a"][0], "--expert", models["b"][0])
    done = cli("merge", *told, *more, out)
    assert done.code == 0, done.err


def check(out: Path, models: Models, weights: list[float], lambda_: float) -> None:
    merged = load_file(out / "model.safetensors")
    for name, own in models["base"][1].items():
        deltas = [(models[k][1][name] - own).double() for k in "abc"]
        total = sum((w * d for w, d in zip(weights, deltas, strict=True)), torch.zeros(()))
        assert torch.allclose(merged[name].double(), own.double() + lambda_ * total, atol=1e-5)


@pytest.mark.parametrize("recipe", ["", "magmerge.yaml", "magmerge.json"])
def test_one_line_adds_an_expert(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine, recipe: str
) -> None:
    first(models, tmp_path / "old", magmerge_cli)
    new = tmp_path / "new"
    told = ("merge", tmp_path / "old" / recipe, new, "--expert", f"extra={models['c'][0]}")
    done = magmerge_cli(*told)
    assert done.code == 0, done.err
    check(new, models, [1, 1, 1], 0.3)
    kept = Recipe.from_yaml((new / "magmerge.yaml").read_text())
    assert list(kept.experts) == ["a", "b", "extra"]
    again = magmerge_cli("merge", new, tmp_path / "again")
    assert again.code == 0, again.err
    files = [(place / "model.safetensors").read_bytes() for place in (new, tmp_path / "again")]
    assert files[0] == files[1]


def test_its_strength_is_its_weight(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    first(models, tmp_path / "old", magmerge_cli, "--set", "weights=[1, 0.5]", "--set", "lambda=1")
    c = models["c"][0]
    refused = magmerge_cli("merge", tmp_path / "old", tmp_path / "no", "--expert", c)
    assert refused.code == 1
    assert "the recipe has 2 weights, and with the new one there are 3 experts" in refused.message
    assert "--set 'weights=[...]' (a, b, c)" in refused.message
    assert "--expert c=PATH=0.5" in refused.message
    told = ("merge", tmp_path / "old", "--expert", f"c={c}=0.5", tmp_path / "strength")
    assert magmerge_cli(*told).code == 0
    check(tmp_path / "strength", models, [1, 0.5, 0.5], 1)
    told = ("merge", tmp_path / "old", "--expert", c, "--set", "weights=[1,2,3]", tmp_path / "set")
    assert magmerge_cli(*told).code == 0
    check(tmp_path / "set", models, [1, 2, 3], 1)
    plain = tmp_path / "plain"
    first(models, plain, magmerge_cli)
    told = ("merge", plain, "--expert", f"{c}=0.5", tmp_path / "weighed")
    assert magmerge_cli(*told).code == 0
    check(tmp_path / "weighed", models, [1, 1, 0.5], 0.3)


def test_weights_that_vary_get_the_strength_in_each_item(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    settings = ("--set", "weights@mlp=[1, 0]", "--set", "weights=[1, 1]", "--set", "lambda=1")
    first(models, tmp_path / "old", magmerge_cli, *settings)
    told = ("merge", tmp_path / "old", "--expert", f"{models['c'][0]}=0.5", tmp_path / "new")
    assert magmerge_cli(*told).code == 0
    kept = Recipe.from_yaml((tmp_path / "new" / "magmerge.yaml").read_text())
    assert [item["value"] for item in kept.params["weights"]] == [[1, 0, 0.5], [1, 1, 0.5]]


def test_values_of_each_expert_are_asked_for(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    settings = ("--method", "ties", "--set", "density=[0.2, 0.4]")
    first(models, tmp_path / "old", magmerge_cli, *settings)
    told = ("merge", tmp_path / "old", "--expert", models["c"][0], tmp_path / "new")
    refused = magmerge_cli(*told)
    assert refused.code == 1
    assert "the recipe has 2 values of density" in refused.message
    assert magmerge_cli(*told, "--set", "density=[0.2, 0.4, 0.6]").code == 0


def test_what_cannot_be_is_refused_with_what_helps(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    first(models, tmp_path / "old", magmerge_cli)
    out, c = tmp_path / "new", models["c"][0]
    twice = magmerge_cli("merge", tmp_path / "old", out, "--expert", f"a={c}")
    assert "has an expert 'a' already" in twice.message
    assert f"--expert a-2={c}" in twice.message.replace("\n", "")
    bare = magmerge_cli("merge", models["a"][0], out, "--expert", c)
    assert "a folder without a recipe" in bare.message
    assert "--base and --expert" in bare.message
    missing = magmerge_cli("merge", tmp_path / "old", out, "--expert", f"x={tmp_path / 'nothing'}")
    assert missing.code == 1
    assert "nothing" in missing.message
    said = magmerge_cli("merge", tmp_path / "old", out, "--expert", c, "--seed", "3")
    assert "--seed is given beside a recipe" in said.message
    assert not out.exists()
    assert magmerge_cli("merge", tmp_path / "old", out, "--expert", f"a-2={c}").code == 0


def test_experts_have_names_in_a_plain_merge_too(
    models: Models, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    experts: list[Any] = [f"one={models['a'][0]}=0.5", models["b"][0], f"three={models['c'][0]}"]
    told = [word for expert in experts for word in ("--expert", expert)]
    done = magmerge_cli("merge", "--base", models["base"][0], *told, tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert list(done.json["recipe"]["experts"]) == ["one", "b", "three"]
    check(tmp_path / "out", models, [0.5, 1, 1], 1)
    told = ["--expert", f"b={models['a'][0]}", "--expert", models["b"][0]]
    twice = magmerge_cli("merge", "--base", models["base"][0], *told, tmp_path / "twice")
    assert "two experts are named 'b'" in twice.message


def test_a_name_is_told_from_a_path_and_a_strength(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    file = tmp_path / "style.safetensors"
    file.touch()
    assert split_name(f"{file}=0.8") == (None, f"{file}=0.8")
    assert split_name(str(odd)) == (None, str(odd))
    assert split_name("maths=PATH=0.5") == ("maths", "PATH=0.5")
    assert split_name("maths=org/name") == ("maths", "org/name")
    assert split_name("style=0.8") == (None, "style=0.8")
    assert split_name("plain") == (None, "plain")
