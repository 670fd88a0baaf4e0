"""Live models with an adapter in them: with what it learnt, or refused with the reason."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import magmerge
from magmerge.core.errors import CheckpointError
from tests.front_door.models import TIED, llama, trained, with_lora


def test_a_live_model_with_an_adapter_is_an_expert_with_its_adapter() -> None:
    base, other = llama(), trained(llama(), 5)
    name = "model.layers.0.self_attn.q_proj.weight"
    for inner in (base, other):
        wrapped = with_lora(inner, 1)
        before = {key: tensor.clone() for key, tensor in wrapped.state_dict().items()}
        expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
        for method, params in (("task_arithmetic", {"lambda": 1.0}), ("average", {})):
            merged = magmerge.merge(
                base=base, experts={"e": wrapped}, method=method, params=params
            ).state_dict()
            assert set(merged) == set(expected)
            for key, tensor in merged.items():
                assert torch.allclose(tensor, expected[key], atol=1e-6), key
        assert not torch.equal(expected[name], inner.state_dict()[name])
        assert all(torch.equal(wrapped.state_dict()[key], one) for key, one in before.items())
    alone = magmerge.merge(experts=[wrapped], method="average").state_dict()
    assert torch.allclose(alone[name], expected[name], atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["dora", "saved", "embedding"],
)
def test_live_adapters_of_other_kinds_keep_what_they_learnt(config: dict[str, Any]) -> None:
    base = llama()
    wrapped = with_lora(base, 1, **config)
    expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    merged = magmerge.merge(base=base, experts=[wrapped], params={"lambda": 1.0}).state_dict()
    for key, tensor in merged.items():
        assert torch.allclose(tensor, expected[key], atol=1e-6), key


def test_a_live_adapter_without_peft_s_wrapper_or_in_a_merge_is_refused() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base = llama()
    config = LoraConfig(target_modules=["q_proj"], r=2)
    injected = inject_adapter_in_model(config, copy.deepcopy(base))
    with pytest.raises(CheckpointError, match="PEFT has put an adapter into it"):
        magmerge.merge(base=base, experts=[injected])
    with pytest.raises(CheckpointError, match="PEFT has wrapped it"):
        magmerge.calibrate(with_lora(base, 1), base=base, experts=[trained(base, 2)])


@pytest.mark.parametrize("kind", TIED)
def test_a_live_adapter_of_one_of_two_tied_matrices_unties_them(kind: str) -> None:
    base = llama(tie=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 1, **TIED[kind]).eval()
    with pytest.warns(magmerge.MagmergeWarning, match="tie_word_embeddings false"):
        result = magmerge.merge(base=base, experts=[wrapped], params={"lambda": 1.0})
    model = llama()
    model.load_state_dict(result.state_dict())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, wrapped(ids).logits, atol=1e-6)


def test_a_live_adapter_that_is_merged_or_put_aside() -> None:
    base = llama()
    wrapped = with_lora(base, 1)
    wrapped.merge_adapter()
    with pytest.raises(CheckpointError, match="unmerge_adapter"):
        magmerge.merge(base=wrapped, experts=[trained(base, 2)])
    expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    merged = magmerge.merge(base=base, experts=[wrapped], params={"lambda": 1.0}).state_dict()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in merged)
    other = with_lora(trained(base, 3), 1)
    inner = other.get_base_model()
    other.base_model.disable_adapter_layers()
    merged = magmerge.merge(base=base, experts=[other], params={"lambda": 1.0}).state_dict()
    name = "model.layers.0.self_attn.q_proj"
    expected_weight = inner.get_submodule(name).base_layer.weight
    assert torch.allclose(merged[f"{name}.weight"], expected_weight, atol=1e-6)


def test_layers_of_one_s_own_that_are_called_alike_are_no_adapters() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(4, 4)

    torch.manual_seed(0)
    base, expert = Own(), Own()
    merged = magmerge.merge(base=base, experts=[expert], params={"lambda": 1.0}).state_dict()
    assert torch.allclose(merged["base_layer.weight"], expert.base_layer.weight.detach())
