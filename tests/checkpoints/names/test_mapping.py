"""Names as a recipe or the command line maps them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, StructureError, UnknownNameError
from magmerge.core.recipe import Recipe
from tests.checkpoints.names.test_rules import state
from tests.conftest import CommandLine, State

NAMES = ("a.0.x.weight", "a.1.x.weight", "b.weight")
OTHERS = ("z.0.x.w", "z.1.x.w", "y")
MAP = {"z.*.x.w": "a.*.x.weight", "y": "b.weight"}


def result(base: State, experts: Any, rename: Any) -> State:
    merged = magmerge.merge(base=base, experts=experts, rename=rename, params={"lambda": 1.0})
    return merged.state_dict()


def test_patterns_carry_over_what_their_stars_match() -> None:
    base, expert = state(*NAMES), state(*OTHERS, seed=1)
    merged = result(base, [expert], MAP)
    for name, tensor in zip(NAMES, expert.values(), strict=True):
        torch.testing.assert_close(merged[name], tensor)


def test_a_map_for_one_expert_comes_before_that_for_all() -> None:
    base, first, second = state(*NAMES), state(*OTHERS, seed=1), state(*NAMES, seed=2)
    merged = result(base, {"one": first, "two": second}, {"one": MAP})
    truth = [one + two - own for one, two, own in zip(
        first.values(), second.values(), base.values(), strict=True)]  # fmt: skip
    for name, tensor in zip(NAMES, truth, strict=True):
        torch.testing.assert_close(merged[name], tensor)
    mixed = {"one": {"z.*": "a.*", "a.*.w": "a.*.weight"}}
    with pytest.raises(StructureError, match=re.escape("'a.*.w' matches no tensor of one")):
        result(base, {"one": first, "two": second}, mixed)


def test_what_matches_nothing_and_what_collides_are_faults() -> None:
    base, expert = state(*NAMES), state(*OTHERS, seed=1)
    with pytest.raises(StructureError, match=re.escape("'q*' matches no tensor of any expert")):
        result(base, [expert], {**MAP, "q*": "r*"})
    with pytest.raises(StructureError) as caught:
        result(base, [expert], {"y": "z.0.x.w"})
    assert "z.0.x.w, y of" in caught.value.faults[0]


@pytest.mark.parametrize(
    ("rename", "error"),
    [
        ({"nobody": {"a": "b"}}, UnknownNameError),
        ({"a.*": "b"}, ParameterError),
        ({"a": ""}, ParameterError),
        ({"a": 1}, ParameterError),
        (3, ParameterError),
    ],
)
def test_a_map_that_means_nothing(rename: Any, error: type[MagmergeError]) -> None:
    with pytest.raises(error):
        result(state(*NAMES), {"one": state(*OTHERS)}, rename)


def test_the_map_is_part_of_the_recipe_and_its_digest() -> None:
    flat = Recipe.model_validate({"experts": {"one": "x"}, "rename": {"a": "b"}})
    assert flat.rename == {"*": {"a": "b"}}
    assert Recipe.from_yaml(flat.to_yaml()) == flat
    assert flat.digest != Recipe(experts={"one": "x"}).digest


def test_the_option_does_the_same(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    base, expert = state(*NAMES), state(*OTHERS, seed=1)
    save_file(base, tmp_path / "base.safetensors")
    save_file(expert, tmp_path / "expert.safetensors")
    models = ("--base", tmp_path / "base.safetensors", "--expert", tmp_path / "expert.safetensors")
    options = [word for old, new in MAP.items() for word in ("--rename", f"{old}={new}")]
    outcome = magmerge_cli("merge", *models, *options, "--set", "lambda=1", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in zip(NAMES, expert.values(), strict=True):
        torch.testing.assert_close(merged[name], tensor)
    again = magmerge_cli("merge", tmp_path / "out" / "magmerge.yaml", tmp_path / "again")
    assert again.code == 0, again.err
    outcome = magmerge_cli("merge", *models, "--rename", "z", tmp_path / "more")
    assert outcome.code != 0
    assert "write OLD=NEW" in outcome.message


def test_an_adapters_names_are_mapped_as_its_tensors(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = {"a.q.weight": torch.randn(6, 5), "a.k.weight": torch.randn(6, 5)}
    up, down = torch.randn(6, 2), torch.randn(2, 5)
    folder = tmp_path / "adapter"
    folder.mkdir()
    keys = {"lora_A": down, "lora_B": up}
    save_file(
        {f"base_model.model.z.q_proj.{key}.weight": value for key, value in keys.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}'
    )
    merged = result(base, [folder], {"z.q_proj.*": "a.q.*"})
    torch.testing.assert_close(merged["a.q.weight"], base["a.q.weight"] + up @ down)


def test_all_that_an_adapter_changes_is_mapped(tmp_path: Path) -> None:
    """DoRA's magnitudes, biases and single tokens go where their modules go."""
    from peft import LoraConfig, get_peft_model

    from tests.front_door.models import llama, trained

    base = llama()
    config = LoraConfig(
        target_modules=["q_proj"], r=2, use_dora=True, trainable_token_indices=[3, 5],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = trained(get_peft_model(copy.deepcopy(base), config), 1, 0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    other = {name.replace("layers", "blocks"): tensor for name, tensor in base.state_dict().items()}
    merged = magmerge.merge(
        base=other,
        experts={"dora": tmp_path / "adapter"},
        rename={"model.layers.*": "model.blocks.*"},
        params={"lambda": 1.0},
    ).state_dict()
    for name, tensor in merged.items():
        own = expected[name.replace("blocks", "layers")]
        assert torch.allclose(tensor, own, atol=1e-6), name
