"""Adapters whose start changed the base, with the adapter that they began with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magmerge.core.errors import AdapterError, MagmergeWarning
from tests.checkpoints.adapters.test_on_base import Small, check, merged
from tests.conftest import State

pytestmark = pytest.mark.filterwarnings("ignore:.*is taken less the adapter")


def trained(start: str, folder: Path, initial: Path) -> tuple[State, State]:
    """As in test_on_base, with the adapter as it was before the training in `initial`."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = Small()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(
        init_lora_weights=start, r=2, lora_alpha=3, target_modules=["first", "second"]
    )
    wrapped: Any = peft.get_peft_model(copy.deepcopy(base), config)
    # As PEFT's documentation has it.
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(initial)
    wrapped.peft_config["default"].init_lora_weights = start
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    return before, wrapped.merge_and_unload().state_dict()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("place", ["a/initial", "a/pissa_init", "olora_init"])
def test_what_was_learnt_since_the_start(tmp_path: Path, start: str, place: str) -> None:
    base, expected = trained(start, tmp_path / "a", tmp_path / place)
    check(base, tmp_path / "a", expected)


def test_without_the_initial_adapter_the_remedy_leads_to_it(tmp_path: Path) -> None:
    base, expected = trained("pissa", tmp_path / "a", tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="a folder named initial") as caught:
        merged(base, tmp_path / "a")
    assert "changes the base itself" in str(caught.value)
    (tmp_path / "elsewhere").rename(tmp_path / "a" / "initial")
    with pytest.warns(MagmergeWarning, match="is taken less the adapter that it began with"):
        check(base, tmp_path / "a", expected)


def test_an_initial_adapter_of_another_training(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = trained("olora", tmp_path / "a", tmp_path / "other")
    config = peft.LoraConfig(r=2, target_modules=["first"])
    peft.get_peft_model(Small(), config).save_pretrained(tmp_path / "a" / "initial")
    with pytest.raises(AdapterError, match="has other modules: second"):
        merged(base, tmp_path / "a")


def test_a_merge_of_two_tells_plain_lora(tmp_path: Path) -> None:
    import magmerge

    base, _ = trained("pissa", tmp_path / "a", tmp_path / "a" / "initial")
    trained("olora", tmp_path / "b", tmp_path / "b" / "initial")
    both = [tmp_path / "a", tmp_path / "b"]
    one = {"method": "task_arithmetic", "params": {"lambda": 1.0}}
    out = magmerge.merge(experts=both, rank="exact", out=tmp_path / "out", **one).path
    assert json.loads((out / "adapter_config.json").read_text())["init_lora_weights"] is True
    found, expected = merged(base, out), magmerge.merge(base=base, experts=both, **one).state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-5), name
