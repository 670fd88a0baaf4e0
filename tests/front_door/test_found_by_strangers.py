"""What trials by strangers found wrong, each as they came upon it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints.output.own_files import FACTORS
from magmerge.core.errors import ParameterError
from magmerge.core.strengths import split_name
from tests.mixtures import dense

SIZE = 6
LAYER = "model.layers.0.mlp.up_proj"
pytestmark = pytest.mark.filterwarnings("ignore::magmerge.MagmergeWarning")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of one layer: a base, two experts, and an adapter's change of the first."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    states = {"base": torch.randn(SIZE, SIZE)}
    states |= {name: states["base"] + 0.1 * torch.randn(SIZE, SIZE) for name in ("m", "other")}
    for name, weight in states.items():
        Path(name).mkdir()
        save_file({f"{LAYER}.weight": weight}, Path(name) / "model.safetensors")
        (Path(name) / "config.json").write_text('{"model_type": "tiny"}')
    up, down = torch.randn(SIZE, 2), torch.randn(2, SIZE)
    Path("lora").mkdir()
    keys = {"A": down, "B": up}
    factors = {f"base_model.model.{LAYER}.lora_{key}.weight": t for key, t in keys.items()}
    save_file(factors, Path("lora") / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (Path("lora") / "adapter_config.json").write_text(json.dumps(config))
    return {**states, "lora": 2 * up @ down}


def merged(result: magmerge.Result) -> Tensor:
    return result.state_dict()[f"{LAYER}.weight"]


@pytest.mark.parametrize("experts", [["m", "m+lora"], ["m+lora", "m"]])
def test_a_model_with_its_adapter_beside_the_model(
    models: dict[str, Tensor], experts: list[str]
) -> None:
    found = merged(magmerge.merge(experts=experts, method="average"))
    torch.testing.assert_close(found, models["m"] + models["lora"] / 2)


@pytest.mark.parametrize("vote", ["plain", "weighted"])
def test_an_expert_of_weight_zero_is_as_if_it_were_not_there(
    models: dict[str, Tensor], vote: str
) -> None:
    params = {"vote": vote, "density": 1.0}
    three = ["m", "other", "m+lora"]
    weighed = magmerge.merge(
        base="base", experts=three, method="ties", params={**params, "weights": [1, 0.5, 0]}
    )
    without = magmerge.merge(
        base="base", experts=three[:2], method="ties", params={**params, "weights": [1, 0.5]}
    )
    assert torch.equal(merged(weighed), merged(without))


def test_a_mixture_is_planned(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    experts = {"a": str(base), "b": str(dense(tmp_path / "b", seed=1))}
    recipe = magmerge.Recipe(base=str(base), experts=experts, moe={"router": "random"})
    (document,) = magmerge.plan_recipe(recipe)
    assert document.plan is not None
    assert [entry.role for entry in document.inputs] == ["base", "expert", "expert"]
    magmerge.run(recipe, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# a and b, a mixture of experts" in card
    assert "of which 2 are taken for each token; routers: random" in card


def test_the_cards_picture_is_sent_with_it(models: dict[str, Tensor]) -> None:
    del models
    magmerge.merge(base="base", experts=["m", "other"], calibrate="wsc", out="out")
    assert FACTORS in Path("out/README.md").read_text()
    assert {FACTORS, "README.md"} <= magmerge.push("out", "me/merge", dry_run=True).files.keys()


def test_documents_tell_all_that_they_are_made_of(models: dict[str, Tensor]) -> None:
    del models
    Path("m/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    Path("other/README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    first = magmerge.Recipe(name="first", base="base", experts={"m": "m"}, method="average")
    experts = {"first": "first", "other": "other"}
    second = magmerge.Recipe(base="base", experts=experts, method="average")
    magmerge.run([first, second], "out")
    record = json.loads(Path("out/magmerge.json").read_text())
    told = [(entry["source"], entry.get("document")) for entry in record["inputs"]]
    assert told == [("../base", None), ("first", None), ("../other", None), ("../m", "first")]
    card = Path("out/README.md").read_text()
    assert "allows no commercial use" in card
    assert "may not go together" in card
    Path("m/model.safetensors").write_bytes(b"changed")
    (inputs,) = [check for check in magmerge.verify("out").checks if check.name == "inputs"]
    assert "m/model.safetensors" in inputs.faults[0].text


def test_a_changed_model_under_an_adapter_is_seen(models: dict[str, Tensor]) -> None:
    magmerge.merge(base="base", experts=["m+lora", "other"], method="average", out="out")
    save_file({f"{LAYER}.weight": models["m"] + 1}, "m/model.safetensors")
    (inputs,) = [check for check in magmerge.verify("out").checks if check.name == "inputs"]
    assert "m/model.safetensors" in inputs.faults[0].text


def test_an_experts_name_may_be_that_of_a_folder(models: dict[str, Tensor]) -> None:
    del models
    assert split_name("m=org/maths") == ("m", "org/maths")
    assert split_name("m=other+lora") == ("m", "other+lora")
    assert split_name("m=0.5") == (None, "m=0.5")


def test_a_plan_refuses_weights_without_a_mean(models: dict[str, Tensor]) -> None:
    del models
    arguments = {"experts": ["m", "other"], "method": "nuslerp", "params": {"weights": [0, 0]}}
    with pytest.raises(ParameterError, match="add up to zero"):
        magmerge.plan(**arguments)


def test_a_plus_in_a_path_of_a_mergekit_recipe(models: dict[str, Tensor]) -> None:
    del models
    Path("base").rename("c+d")
    Path("r.yml").write_text(
        "merge_method: linear\nbase_model: c+d\nmodels: [{model: m}, {model: other}]\n"
        "parameters: {weight: 1}\n"
    )
    recipe = magmerge.run("r.yml", "out").recipe
    assert recipe.output.donor == "c+d"


def test_a_misspelt_filter_of_a_mergekit_recipe_is_told_with_what_may_be_meant(
    models: dict[str, Tensor],
) -> None:
    del models
    Path("r.yml").write_text(
        "merge_method: linear\nmodels: [{model: m}, {model: other}]\n"
        "parameters: {weight: [{filter: up_porj, value: 0.5}, {value: 1}]}\n"
    )
    with pytest.warns(magmerge.MagmergeWarning, match="left out: did you mean up_proj"):
        magmerge.run("r.yml", "out")
