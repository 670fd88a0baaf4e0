"""Recipes of mergekit-moe in magmerge's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import magmerge
from magmerge.core.errors import MagmergeError
from magmerge.core.recipe import Recipe
from tests.conftest import CommandLine
from tests.mixtures import dense, logits, tensors

TEXT = """
base_model: models/base
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 1
experts:
  - source_model: models/maths
    positive_prompts: [two and two, a sum]
    negative_prompts: [a poem]
    residual_scale: 0.5
  - source_model: models/maths
    positive_prompts: [a story]
    noise_scale: 0.1
"""


def test_every_word_has_its_place() -> None:
    recipe = Recipe.from_yaml(TEXT)
    assert recipe == Recipe(
        base="models/base",
        experts={"maths": "models/maths", "maths-2": "models/maths"},
        moe={
            "router": "embedding",
            "prompts": {"maths": ["two and two", "a sum"], "maths-2": "a story"},
            "negative_prompts": {"maths": "a poem"},
            "experts_per_token": 1,
            "residual_scale": {"maths": 0.5},
            "noise": {"maths-2": 0.1},
        },
        output={"dtype": "bfloat16"},
    )
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("mode", "router"),
    [(None, "hidden"), ("hidden", "hidden"), ("random", "random"), ("uniform_random", "random")],
)
def test_gate_modes(mode: str | None, router: str) -> None:
    content = yaml.safe_load(TEXT)
    content.pop("gate_mode")
    told = {} if mode is None else {"gate_mode": mode}
    recipe = Recipe.from_yaml(yaml.safe_dump({**content, **told}))
    assert recipe.moe is not None
    assert recipe.moe["router"] == router


def test_shared_experts_add_in_full_as_they_do_there() -> None:
    content = {**yaml.safe_load(TEXT), "shared_experts": [{"source_model": "models/all"}]}
    moe = Recipe.from_yaml(yaml.safe_dump(content)).moe
    assert moe is not None
    assert moe["shape"] == "qwen2_moe"
    assert moe["shared"] == ["all"]
    assert moe["residual_scale"] == {"maths": 0.5, "maths-2": 1.0, "all": 1.0}


@pytest.mark.parametrize(
    ("word", "shape"), [("Mixtral", "mixtral"), ("qwen3", "qwen3_moe"), ("qwen", None)]
)
def test_architectures(word: str, shape: str | None) -> None:
    moe = Recipe.from_yaml(f"{TEXT}\narchitecture: {word}").moe
    assert moe is not None
    assert moe["shape"] == shape


def test_other_documents_of_the_file_stay_as_they_are() -> None:
    plain = {"name": "models/base", "base": "b", "experts": {"source_model": "x"}, "method": "ties"}
    first, second = Recipe.all_from_yaml(f"{yaml.safe_dump(plain)}---{TEXT}")
    assert first == Recipe(**plain)
    assert second == Recipe.from_yaml(TEXT)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "key": ({"gate_mod": "random"}, "unknown key 'gate_mod'", "did you mean gate_mode or"),
    "mode": ({"gate_mode": "best"}, "gate_mode", "write base_model"),
    "inner": (
        {"experts": [{"source_model": "a", "positive_prompt": ["x"]}]},
        "unknown key 'experts.0.positive_prompt'",
        "did you mean positive_prompts or",
    ),
    "architecture": ({"architecture": "deepseek"}, "'deepseek' is not written", "mixtral, qwen"),
    "base": ({"base_model": None}, "base_model", "write base_model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_by_their_keys(case: str) -> None:
    changes, problem, remedy = WRONG[case]
    with pytest.raises(MagmergeError) as raised:
        Recipe.from_yaml(yaml.safe_dump({**yaml.safe_load(TEXT), **changes}), "the file")
    assert problem in raised.value.problem
    assert remedy in str(raised.value.remedy)
    assert raised.value.source == "the file"


def test_the_command_line_runs_one(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    content = {"base_model": str(base), "gate_mode": "random", "dtype": "float32"}
    content["experts"] = [{"source_model": str(base)}, {"source_model": str(other)}]
    (tmp_path / "moe.yml").write_text(yaml.safe_dump({**content, "seed": 3}))
    assert magmerge_cli("merge", tmp_path / "moe.yml", tmp_path / "out").code == 0
    assert logits(tmp_path / "out").isfinite().all()
    experts = {"a": str(base), "b": str(other)}
    same = Recipe(base=str(base), experts=experts, moe={"router": "random"}, seed=3)
    state = magmerge.run(same).state_dict()
    assert all(torch.equal(state[name], t) for name, t in tensors(tmp_path / "out").items())
