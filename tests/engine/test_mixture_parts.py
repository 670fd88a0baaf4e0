"""What does not fit in a mixture, with remedies that lead on; and what is said of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeError
from magmerge.core.moe import Moe
from magmerge.engine.resolve import check_recipe
from tests.mixtures import PROMPTS, dense, logits, mixed, tensors
from tests.quick import examples
from tests.token_models import config_of


def recipe_of(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    base = tmp_path / "base"
    fields: dict[str, Any] = {"base": str(base), "experts": {"a": str(base), "b": str(base)}}
    fields["moe"] = {"router": "random"}
    return {**fields, **changes}


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "calibration": ({"calibrate": "wsc"}, "calibrate speaks of a merge", "document of its own"),
    "method": ({"method": "ties"}, "method speaks of a merge", "document of its own"),
    "no base": ({"base": None}, "needs a base", "base: PATH"),
    "adapter": ({"output": {"rank": 4}}, "makes a whole model", "drop rank"),
    "prompts": ({"moe": {}}, "'a' has no prompts", "router: random"),
    "prompts of one": ({"moe": {"prompts": {"a": "x"}}}, "'b' has no prompts", "router: random"),
    "empty": ({"moe": {"prompts": {"a": "x", "b": " "}}}, "holds an empty text", "prompts"),
    "same": ({"moe": {"prompts": {"a": "x", "b": "x"}}}, "the same prompts", "router: random"),
    "misspelt": (
        {"moe": {"prompts": {"a": "x", "bb": "y"}}}, "speaks of 'bb'", "did you mean b?",
    ),
    "key": ({"moe": {"routr": "random"}}, "unknown key 'moe.routr'", "did you mean router?"),
    "router": ({"moe": {"router": "best"}}, "moe.router", "moe is fields"),
    "count": (
        {"moe": {"router": "random", "experts_per_token": 3}}, "experts_per_token is 3",
        "experts_per_token: 2",
    ),
    "all shared": (
        {"moe": {"router": "random", "shared": ["a", "b"]}}, "no expert is left", "moe.shared",
    ),
    "shared": ({"moe": {"router": "random", "shared": "a", "experts_per_token": 1}},
               "mixtral has no shared experts", "shape: qwen2_moe"),
    "shape": ({"moe": {"router": "random", "shape": "qwen3_moe"}}, "goes into no qwen3_moe",
              "shape: mixtral or qwen2_moe"),
    "cancelled": (
        {"moe": {"prompts": {"a": "cat", "b": "dog"}, "negative_prompts": {"a": "cat"}}},
        "cancel each other", "negative_prompts",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path: Path, case: str) -> None:
    dense(tmp_path / "base")
    changes, problem, remedy = REFUSED[case]
    with pytest.raises(MagmergeError) as raised:
        magmerge.run(magmerge.Recipe(**recipe_of(tmp_path, **changes)), tmp_path / "out")
    assert problem in str(raised.value)
    assert remedy in str(raised.value.remedy)
    assert not (tmp_path / "out").exists()


def refusal(tmp_path: Path, base: Path, expert: Path, **moe: Any) -> str:
    with pytest.raises(MagmergeError) as raised:
        mixed(base, {"a": base, "b": expert}, tmp_path / "out", **{"router": "random", **moe})
    return str(raised.value)


def test_models_that_do_not_fit_are_told_together(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    wide = dense(tmp_path / "wide", intermediate_size=64, num_hidden_layers=4, hidden_act="gelu")
    said = refusal(tmp_path, base, wide)
    assert "has another shape" in said
    assert "[64, 32], not [48, 32], and 8 more" in said
    assert "has 4 blocks, and the base 3" in said
    assert "have gelu, and the base's silu" in said
    assert "is missing from" in refusal(
        tmp_path, base, dense(tmp_path / "short", num_hidden_layers=2)
    )
    biased = dense(tmp_path / "biased", mlp_bias=True)
    assert "experts of a mixture have no biases" in refusal(tmp_path, base, biased)
    assert "blocks of mixtral have no mlp.gate_proj.bias" in refusal(tmp_path, biased, base)
    attention = dense(tmp_path / "attention", attention_bias=True)
    assert "blocks of mixtral have no self_attn.k_proj.bias" in refusal(tmp_path, attention, base)
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    half = dense(tmp_path / "half", "qwen3", **window)
    assert "those of qwen3_moe are all alike" in refusal(tmp_path, half, half)


def test_the_remedy_for_biases_leads_on(tmp_path: Path) -> None:
    """A qwen2 model in a llama's config: its biases go into qwen2_moe, and into no mixtral."""
    transformers = pytest.importorskip("transformers")
    base = dense(tmp_path / "base", attention_bias=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    state = {n: t for n, t in model.state_dict().items() if "o_proj.bias" not in n}
    model.save_pretrained(base, state_dict=state)
    assert "remedy: write shape: qwen2_moe" in refusal(tmp_path, base, base)
    mixed(base, {"a": base, "b": base}, tmp_path / "out", router="random", shape="qwen2_moe")
    assert logits(tmp_path / "out").isfinite().all()


def test_other_models_are_refused_with_what_is_possible(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    config = config_of(base)
    (base / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    said = refusal(tmp_path, base, base)
    assert "model_type is 'gemma2'" in said
    assert "llama into mixtral or qwen2_moe" in said
    (base / "config.json").unlink()
    assert "no config.json" in refusal(tmp_path, base, base)


def test_prompts_need_a_tokenizer(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in refusal(tmp_path, base, base, router="embedding", prompts=PROMPTS)
    mixed(base, {"a": base, "b": base}, tmp_path / "out", router="random")


def test_what_is_chosen_for_the_user_is_said(tmp_path: Path) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1, vocab_size=70)
    experts = {"a": base, "b": other, "c": other}
    told = mixed(base, experts, tmp_path / "uniform", router="uniform", prompts=PROMPTS)
    assert any("every token takes the same 2 of 3" in note for note in told)
    assert any("the prompts are not used" in note for note in told)
    assert any("another vocabulary than the base's" in note for note in told)
    alike = {**PROMPTS, "c": PROMPTS["b"]}
    told = mixed(base, experts, tmp_path / "alike", router="embedding", prompts=alike)
    assert any("c and b have the same prompts" in note for note in told)


def test_blocks_that_are_left_out_are_told(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    state = tensors(base)
    number = 10**5
    gap = {name.replace("layers.2.", f"layers.{number}."): t for name, t in state.items()}
    save_file(gap, base / "model.safetensors", metadata={"format": "pt"})
    assert f"of its {number + 1} blocks 3 are there" in refusal(tmp_path, base, base)


def test_configs_may_hold_anything(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", "qwen2")
    config = config_of(base)
    odd = {"max_window_layers": "x", "layer_types": 3, "use_sliding_window": True}
    odd |= {"architectures": 7, "rope_parameters": [1], "num_key_value_heads": None}
    (base / "config.json").write_text(json.dumps({**config, **odd}))
    try:
        mixed(base, {"a": base, "b": base}, tmp_path / "out", router="random")
    except MagmergeError as error:
        assert error.remedy


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@settings(max_examples=examples(200), deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Moe.model_fields)), VALUES))
def test_any_fields_are_a_mixture_or_an_error_with_a_remedy(fields: dict[str, Any]) -> None:
    try:
        recipe = magmerge.Recipe(base="x", experts={"a": "y", "b": "z"}, moe=fields)
        check_recipe(recipe)
    except MagmergeError as error:
        assert error.remedy
    else:
        assert magmerge.Recipe.from_yaml(recipe.to_yaml()) == recipe
