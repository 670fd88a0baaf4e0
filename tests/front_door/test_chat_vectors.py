"""Adding and subtracting models: T + 0.8 (I - B), also where T has tokens of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.core.recipe import Recipe
from tests.conftest import CommandLine, random_state, tuned
from tests.token_models import EMBEDDING, HEAD, LAYER, loaded, model, result, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
NEW = ["<|new|>", "<|im_start|>"]


def formula(base: Tensor, trained: Tensor, taught: Tensor, factor: float = 0.8) -> Tensor:
    return trained.double() + factor * (taught.double() - base.double())


@pytest.mark.parametrize("factor", [0.8, -0.5, 0.0])
def test_weights_on_a_base_are_sums_of_models(factor: float) -> None:
    base = random_state(0)
    trained, taught = tuned(base, 1), tuned(base, 2)
    merged = magmerge.merge(
        base=base, experts=[trained, taught], params={"lambda": 1, "weights": [1, factor]}
    ).state_dict()
    for name, tensor in merged.items():
        expected = formula(base[name], trained[name], taught[name], factor)
        assert torch.allclose(tensor.double(), expected, atol=1e-5), name


@pytest.fixture
def models(tmp_path: Path) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    """B and I with one vocabulary, T with tokens more; I has a template of chats."""
    made = {}
    for seed, name in enumerate(("B", "T", "I")):
        folder = tmp_path / name
        rows = len(tokenizer(folder, NEW if name == "T" else []))
        made[name] = (folder, model(folder, rows, seed))
    (made["I"][0] / "chat_template.jinja").write_text("{{ 'taught' }}")
    return made


def check(out: Path, models: Any, *, own: bool) -> None:
    """Whether it is the formula, and in what only T has, T; with `own` so in all rows of tokens."""
    merged, (base, trained, taught) = result(out), (models[name][1] for name in ("B", "T", "I"))
    expected = formula(base[LAYER], trained[LAYER], taught[LAYER])
    assert torch.allclose(merged[LAYER].double(), expected, atol=1e-5)
    for name in (EMBEDDING, HEAD):
        shared = len(base[name])
        assert merged[name].shape == trained[name].shape
        assert torch.equal(merged[name][shared:], trained[name][shared:])
        rows = formula(base[name], trained[name][:shared], taught[name])
        whole = trained[name][:shared].double() if own else rows
        assert torch.allclose(merged[name][:shared].double(), whole, atol=1e-5)


def test_one_command(models: Any, tmp_path: Path, magmerge_cli: CommandLine) -> None:
    out, (base, trained, taught) = tmp_path / "out", (models[name][0] for name in ("B", "T", "I"))
    told = ("--base", base, "--expert", f"{trained}=1", "--expert", f"{taught}=0.8")
    told = ("merge", *told, "--tokenizer", "T")
    done = magmerge_cli(*told, "--chat-template", "I", out)
    assert done.code == 0, done.err
    check(out, models, own=False)
    read = loaded(out)
    assert read.chat_template == "{{ 'taught' }}"
    assert [read.convert_tokens_to_ids(token) for token in NEW] == [
        *(loaded(trained).convert_tokens_to_ids(token) for token in NEW)
    ]
    kept = tmp_path / "kept"
    ignored = ("--ignore", "*embed_tokens*", "--ignore", "lm_head.weight")
    assert magmerge_cli(*told, *ignored, kept).code == 0
    check(kept, models, own=True)


def test_one_recipe(models: Any, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(
        f"""
        base: {models["B"][0]}
        experts: {{T: {models["T"][0]}, I: {models["I"][0]}}}
        method: task_arithmetic
        params: {{lambda: 1, weights: [1, 0.8]}}
        tokenizer: T
        chat_template: I
        """
    )
    magmerge.run(recipe, tmp_path / "out")
    check(tmp_path / "out", models, own=False)
    assert loaded(tmp_path / "out").chat_template == "{{ 'taught' }}"
    with pytest.raises(ParameterError, match="chat_template") as caught:
        Recipe.from_yaml("experts: [a]\nchat_template: [b]\n")
    assert "chatml" in caught.value.remedy
