"""PEFT's LoRA of fused experts (target_parameters), against PEFT's own merge."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from magmerge.core.errors import AdapterError, StructureError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
SIZE = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"num_key_value_heads": 1, "num_experts_per_tok": 2, "num_local_experts": 3, "head_dim": 8}


def mixtral(intermediate: int) -> Any:
    config = transformers.MixtralConfig(**SIZE, intermediate_size=intermediate)
    return transformers.MixtralForCausalLM(config)


def gpt_oss(intermediate: int) -> Any:
    config = transformers.GptOssConfig(**SIZE, intermediate_size=intermediate)
    return transformers.GptOssForCausalLM(config)


def saved(model: Any, folder: Path, parameters: list[str]) -> dict[str, torch.Tensor]:
    """A base and an adapter in `folder`; what PEFT's merge of them is as it is saved."""
    torch.manual_seed(1)
    model.save_pretrained(folder / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=parameters
    )
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder / "adapter")
    wrapped.merge_and_unload().save_pretrained(folder / "truth")
    from safetensors.torch import load_file

    return load_file(folder / "truth" / "model.safetensors")


@pytest.mark.parametrize("parameters", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "first", "second"])
@pytest.mark.parametrize("intermediate", [24, 16])
@pytest.mark.parametrize("family", [mixtral, gpt_oss])
def test_fused_experts_are_merged_as_peft_merges_them(
    tmp_path: Path, family: Any, intermediate: int, parameters: list[str]
) -> None:
    torch.manual_seed(0)
    truth = saved(family(intermediate), tmp_path, parameters)
    result = magmerge.merge(base=tmp_path / "base", experts=[f"{tmp_path / 'adapter'}=1"])
    found = result.state_dict()
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_what_the_base_has_not_is_a_fault_and_without_a_base_it_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved(mixtral(24), tmp_path, BOTH)
    with pytest.raises(AdapterError, match="bare parameters, whose shape the base tells"):
        magmerge.merge(experts=[tmp_path / "adapter"], method="average")
    other = mixtral(20)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(StructureError, match="its experts of adapter are not in the base"):
        magmerge.merge(base=tmp_path / "other", experts=[tmp_path / "adapter"])


def test_a_configuration_that_names_other_parameters_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved(mixtral(24), tmp_path, BOTH)
    path = tmp_path / "adapter" / "adapter_config.json"
    told = {**json.loads(path.read_text()), "target_parameters": ["experts.gate_up_proj"]}
    path.write_text(json.dumps(told))
    with pytest.raises(AdapterError, match=r"2 parameters of .*experts are adapted"):
        magmerge.merge(base=tmp_path / "base", experts=[tmp_path / "adapter"])
