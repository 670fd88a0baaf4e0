"""mergekit's recipes, carried out: beside what its words mean, in plain float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeWarning
from tests.conftest import CommandLine

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")

SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    **{
        f"model.layers.{n}.{part}.weight": (8, 8) for n in range(3) for part in ("attn.q", "mlp.up")
    },
    "model.norm.weight": (8,),
}
WEIGHTS, DENSITY = {"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.37}
NAMES = ("base", "a", "b", "c")


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """A base and three experts, each a folder in the folder that is run in."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    told = {"base": base}
    for name in NAMES[1:]:
        told[name] = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}
    for name, state in told.items():
        folder = tmp_path / name
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        config = {"model_type": "tiny", "hidden_size": 8, "num_hidden_layers": 3}
        (folder / "config.json").write_text(json.dumps(config))
    return told


def run(
    document: str | Mapping[str, Any], rules: str = "mergekit", out: str | None = None
) -> magmerge.Result:
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    Path("recipe.yml").write_text(text)
    return magmerge.run(magmerge.read_recipes("recipe.yml", rules), out)


def of(method: str, models: Sequence[str] = ("a", "b"), **parameters: Any) -> dict[str, Any]:
    """A document that merges models on the base, with weights and densities of their own."""
    entries = [
        {"model": m, "parameters": {"weight": WEIGHTS[m], "density": DENSITY[m]}} for m in models
    ]
    return {
        "merge_method": method,
        "base_model": "base",
        "models": entries,
        "parameters": parameters,
    }


Deltas = Mapping[str, Tensor]
Formula = Callable[[Tensor, Deltas], Tensor]


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries of a tensor, their number cut off."""
    flat = delta.flatten()
    stays = flat.abs().argsort(descending=True, stable=True)[: max(1, int(density * len(flat)))]
    return torch.zeros_like(flat).index_put((stays,), flat[stays]).reshape(delta.shape)


def elected(deltas: Deltas, *, mean: bool) -> Tensor:
    """The weighted entries that have the sign of the weighted sum."""
    weighted = {name: WEIGHTS[name] * delta for name, delta in deltas.items()}
    sign = torch.where(sum(weighted.values()) >= 0, 1.0, -1.0)
    masks = {name: (delta.sign() == sign).double() for name, delta in weighted.items()}
    total = sum(weighted[name] * masks[name] for name in deltas)
    share = sum(WEIGHTS[name] * masks[name] for name in deltas)
    return total / torch.where(share == 0, 1.0, share) if mean else total


def linear(base: Tensor, deltas: Deltas) -> Tensor:
    return base + sum(WEIGHTS[name] * delta for name, delta in deltas.items())


def ties(base: Tensor, deltas: Deltas) -> Tensor:
    kept = {name: trimmed(delta, DENSITY[name]) for name, delta in deltas.items()}
    return base + elected(kept, mean=True)


def ties_rescaled(base: Tensor, deltas: Deltas) -> Tensor:
    kept = {name: trimmed(delta, 0.5) for name, delta in deltas.items()}
    kept = {n: k * deltas[n].abs().sum() / k.abs().sum() for n, k in kept.items()}
    return base + 0.5 * elected(kept, mean=False)


def dense_dare_ties(base: Tensor, deltas: Deltas) -> Tensor:
    return base + elected(deltas, mean=False)


def stock(base: Tensor, deltas: Deltas) -> Tensor:
    one, other = deltas.values()
    cosine = (one * other).sum() / one.norm() / other.norm()
    return base + 2 * cosine / (1 + cosine) * (one + other) / 2


def nearswap(base: Tensor, deltas: Deltas) -> Tensor:
    (delta,) = deltas.values()
    return base + (0.05 / delta.abs()).clamp(max=1) * delta


def ram(base: Tensor, deltas: Deltas) -> Tensor:
    changed = {name: delta * (delta.abs() > 0.05) for name, delta in deltas.items()}
    count = sum((delta != 0).double() for delta in changed.values())
    return base + sum(changed.values()) / count.clamp(min=1)


FORMULAS: dict[str, tuple[dict[str, Any], Formula]] = {
    "linear": (of("linear"), linear),
    "task_arithmetic": (of("task_arithmetic", rescale=True), linear),
    "breadcrumbs_dense": (of("breadcrumbs", density=1.0), linear),
    "dare_ties_dense": (of("dare_ties"), dense_dare_ties),
    "ties_rescaled": (of("ties", rescale=True, normalize=False), ties_rescaled),
    "model_stock": (of("model_stock"), stock),
    "nearswap": (of("nearswap", ("a",), t=0.05), nearswap),
    "ram": (of("ram", epsilon=0.05), ram),
}
for name in ("breadcrumbs_dense", "dare_ties_dense"):
    for entry in FORMULAS[name][0]["models"]:
        entry["parameters"].pop("density")
for entry in FORMULAS["ties_rescaled"][0]["models"]:
    entry["parameters"]["density"] = 0.5
FORMULAS["ties_rescaled"][0]["parameters"]["lambda"] = 0.5
FORMULAS["linear"][0]["base_model"] = None


def compare(result: magmerge.Result, states: Mapping[str, Any], models: Sequence[str],
            formula: Formula) -> None:  # fmt: skip
    merged = result.state_dict()
    for name in SHAPES:
        base = states["base"][name].double()
        deltas = {model: states[model][name].double() - base for model in models}
        expected = formula(base, deltas)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", FORMULAS)
def test_methods_do_what_mergekits_words_mean(
    states: dict[str, dict[str, Tensor]], case: str
) -> None:
    document, formula = FORMULAS[case]
    models = [entry["model"] for entry in document["models"]]
    compare(run(document), states, models, formula)


def test_slerp_runs_from_base_model_to_the_other_along_a_gradient(
    states: dict[str, dict[str, Tensor]],
) -> None:
    text = """
models: [{model: a}, {model: b}]
merge_method: slerp
base_model: b
parameters:
  t: [{filter: attn, value: [0, 0.5, 0.3]}, {filter: mlp, value: [1, 0]}, {value: 0.25}]
"""
    values = {"attn.q": (0, 0.5, 0.3), "mlp.up": (1, 0.5, 0)}
    merged = run(text).state_dict()
    for name in SHAPES:
        t = 0.25
        if "layers" in name:
            layer, part = int(name.split(".")[2]), name.split(".", 3)[3].removesuffix(".weight")
            t = values[part][layer]
        one, other = states["b"][name].double(), states["a"][name].double()
        cosine = float((one * other).sum() / one.norm() / other.norm())
        angle = math.acos(cosine)
        shares = (math.sin((1 - t) * angle), math.sin(t * angle))
        expected = (1 - t) * one + t * other
        if cosine <= 0.9995:
            expected = (shares[0] * one + shares[1] * other) / math.sin(angle)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_each_way_is_its_own_and_is_recorded(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    document = of("sce")
    theirs, ours = run(document, "mergekit", "theirs"), run(document, "better", "ours")
    assert theirs.recipe.params["energy_floor"] == 1e-6
    assert ours.recipe.params["energy_floor"] == 0.0
    assert any("rule energy" in warning for warning in ours.warnings)
    again = magmerge.run("ours/magmerge.yaml", "again")
    assert again.recipe.digest == ours.recipe.digest
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "again"))
    assert all(torch.equal(first[name], second[name]) for name in states["a"])


SEVERAL = """
merge_method: linear
models: [{model: pair, parameters: {weight: 1}}, {model: c, parameters: {weight: 1}}]
---
name: pair
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
"""


def test_documents_feed_each_other_without_files_of_their_own(
    states: dict[str, dict[str, Tensor]], magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    Path("several.yml").write_text(SEVERAL)
    planned = magmerge_cli("plan", "several.yml", "out", "--json")
    assert planned.code == 0, planned.err
    assert [len(document["steps"]) for document in planned.json["documents"]] == [len(SHAPES)] * 2
    assert not (tmp_path / "out").exists()
    done = magmerge_cli("merge", "several.yml", "out")
    assert done.code == 0, done.err
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in merged.items():
        pair = (states["a"][name].double() + 3 * states["b"][name].double()) / 4
        expected = (pair + states["c"][name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_command_line_tells_faults_with_lines_and_takes_as(
    states: dict[str, dict[str, Tensor]], magmerge_cli: CommandLine
) -> None:
    Path("wrong.yml").write_text("merge_method: linear\nmodels: [{model: a}]\nparametres: {}\n")
    for verb in ("plan", "merge"):
        told = magmerge_cli(verb, "wrong.yml", *(["out"] if verb == "merge" else []))
        assert told.code == 1
        assert "wrong.yml, line 3: unknown key 'parametres'" in told.err
        assert "did you mean parameters?" in told.err
    Path("sce.yml").write_text(yaml.safe_dump(of("sce")))
    told = magmerge_cli("merge", "sce.yml", "out", "--as", "mergekit", "--json")
    assert told.json["recipe"]["params"]["energy_floor"] == 1e-6
    told = magmerge_cli("merge", "sce.yml", "out", "--yes", "--as", "worse")
    assert "not read as 'worse'" in told.err
    told = magmerge_cli("merge", "--expert", "a", "--expert", "b", "out2", "--as", "mergekit")
    assert "--as speaks of a recipe of mergekit's" in told.err
    told = magmerge_cli("plan", "out")
    assert "no expert is given" in told.err
    told = magmerge_cli("plan", "sce.yml", "--base", "base")
    assert "--base is given beside a recipe" in told.err


def test_one_line_calibrates(states: dict[str, dict[str, Tensor]]) -> None:
    result = run({**of("task_arithmetic"), "calibrate": "wsc", "dtype": "bfloat16"}, "better")
    assert result.recipe.calibrate[0].method == "wsc"
    assert {tensor.dtype for tensor in result.state_dict().values()} == {torch.bfloat16}
    assert any(record.calibrated_by for record in result.records)


def test_chat_vectors_are_two_weights(states: dict[str, dict[str, Tensor]]) -> None:
    entries = [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 0.8), ("b", -0.8))]
    merged = run({**of("task_arithmetic"), "models": entries}, "better").state_dict()
    for name in SHAPES:
        base, one, other = (states[m][name].double() for m in ("base", "a", "b"))
        torch.testing.assert_close(
            merged[name].double(), base + 0.8 * (one - other), rtol=1e-5, atol=1e-6
        )


def test_what_applies_is_warned_of(states: dict[str, dict[str, Tensor]]) -> None:
    with pytest.warns(MagmergeWarning, match="rule vote: each model has one vote"):
        run(of("breadcrumbs_ties"), "better")


def test_without_a_dtype_the_format_is_the_bases_or_as_mergekit_the_widest(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    half = {name: tensor.bfloat16() for name, tensor in states["base"].items()}
    save_file(half, tmp_path / "base" / "model.safetensors")
    formats = []
    for rules in ("better", "mergekit"):
        merged = run(of("task_arithmetic"), rules).state_dict()
        formats.append({tensor.dtype for tensor in merged.values()})
    assert formats == [{torch.bfloat16}, {torch.float32}]


def test_filters_that_take_no_tensor_are_left_out_and_said(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    weights = [{"filter": "lm_head", "value": 9}, {"filter": "mlp", "value": [0.25, 0.75]}]
    weights += [{"filter": "mlp.up", "value": 9}, {"value": 0.5}]
    lambda_ = [{"filter": "lm_head", "value": 9}, {"value": 2}]
    document = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"weight": weights, "lambda": lambda_},
    }
    result = run(document, "better", "out")
    assert result.recipe.params["lambda"] == 2.0
    assert result.recipe.params["weights"] == [
        {"filter": "mlp", "value": [{"gradient": [0.25, 0.75]}] * 2},
        {"value": [0.5, 0.5]},
    ]
    told = [warning for warning in result.warnings if "takes no tensor" in warning]
    assert len(told) == 3
    merged = result.state_dict()["model.norm.weight"]
    base, one, other = (states[name]["model.norm.weight"] for name in ("base", "a", "b"))
    torch.testing.assert_close(merged, base + (one - base) + (other - base))
    again = magmerge.run("out/magmerge.yaml")
    assert again.recipe.digest == result.recipe.digest


def adapter(folder: Path, seed: int) -> str:
    """A PEFT adapter of the first block."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    name = "base_model.model.model.layers.0.attn.q.lora_{}.weight"
    factors = {"A": (2, 8), "B": (8, 2)}
    state = {name.format(k): torch.randn(s, generator=generator) for k, s in factors.items()}
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_plan_leaves_out_what_reads_an_adapter_that_is_not_made_yet(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    experts = {name: adapter(tmp_path / name, seed) for seed, name in enumerate("xy")}
    first = magmerge.Recipe(name="both", experts=experts, method="average")
    second = magmerge.Recipe(base="base", experts={"both": "both"}, method="task_arithmetic")
    done, left = magmerge.plan_recipe([first, second])
    assert done.plan is not None
    assert left.plan is None
    assert "an adapter that is not made yet" in left.reason
    assert magmerge.run([first, second]).state_dict().keys() == SHAPES.keys()
