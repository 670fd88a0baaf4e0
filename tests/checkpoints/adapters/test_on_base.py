"""Adapters whose task vector needs the base, or more than modules: against PEFT's own merge, and
against the formulas in float64.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import magmerge
from magmerge.core.errors import AdapterError, StructureError

State = dict[str, Tensor]


class Small(nn.Module):
    """A model with each kind of layer that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.first = nn.Linear(6, 70)
        self.second = nn.Linear(70, 6)
        self.conv = nn.Conv2d(4, 6, 3)
        self.line = nn.Conv1d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.embed(x)))  # type: ignore[no-any-return]


def trained(config: Any, folder: Path, model: nn.Module | None = None) -> tuple[State, State]:
    """The base's tensors and those of PEFT's own merge; its adapter lies in `folder`."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = Small() if model is None else model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    wrapped = peft.get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    return before, wrapped.merge_and_unload().state_dict()


def merged(base: State, adapter: Path, **more: Any) -> State:
    """The base with the adapter at its full strength."""
    result = magmerge.merge(base=base, experts={"e": adapter}, params={"lambda": 1.0}, **more)
    return result.state_dict()


def check(base: State, adapter: Path, expected: State) -> None:
    """The merge is PEFT's, and something was learnt."""
    found = merged(base, adapter)
    assert found.keys() == base.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name
    assert any(not torch.equal(expected[name], base[name]) for name in base)


REFUSED = ["OFT", "LoKr of a line", "VeRA", "HRA", "PiSSA", "OLoRA"]
EVERY = ["embed", "first", "second", "conv", "line"]


def configurations() -> dict[str, Any]:
    peft = pytest.importorskip("peft")
    lora = {"r": 2, "lora_alpha": 3}
    return {
        "DoRA": peft.LoraConfig(use_dora=True, target_modules=EVERY, **lora),
        "DoRA of some": peft.LoraConfig(
            use_dora=True, use_rslora=True, rank_pattern={"first": 3}, target_modules=EVERY, **lora
        ),
        "biases": peft.LoraConfig(lora_bias=True, target_modules=["first", "second"], **lora),
        "all biases": peft.LoraConfig(bias="all", target_modules=["first"], **lora),
        "LoRA's own biases": peft.LoraConfig(bias="lora_only", target_modules=["first"], **lora),
        "LoHa": peft.LoHaConfig(r=2, alpha=3, target_modules=EVERY[1:]),
        "LoHa of full rank": peft.LoHaConfig(r=5, alpha=3, target_modules=EVERY[1:]),
        "LoHa with cores": peft.LoHaConfig(
            r=2, alpha=3, use_effective_conv2d=True, target_modules=EVERY[1:]
        ),
        "LoKr": peft.LoKrConfig(r=1, alpha=3, target_modules=EVERY[1:]),
        "LoKr of full rank": peft.LoKrConfig(r=8, alpha=3, target_modules=EVERY[1:4]),
        "LoKr of a line": peft.LoKrConfig(r=8, alpha=3, target_modules=["line"]),
        "LoKr in factors": peft.LoKrConfig(
            r=1, alpha=3, decompose_both=True, decompose_factor=2, target_modules=EVERY[1:]
        ),
        "LoKr with a core": peft.LoKrConfig(
            r=1,
            alpha=3,
            use_effective_conv2d=True,
            rank_pattern={"conv": 2},
            target_modules=EVERY[1:4],
        ),
        "IA3": peft.IA3Config(target_modules=["first", "second"], feedforward_modules=["second"]),
        "tokens": peft.LoraConfig(
            target_modules=["first"], trainable_token_indices={"embed": [11, 2]}, **lora
        ),
        "tokens alone": peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[3, 7]),
        "VeRA": peft.VeraConfig(r=2, target_modules=["first"]),
        "HRA": peft.HRAConfig(r=2, target_modules=["first"]),
        "PiSSA": peft.LoraConfig(init_lora_weights="pissa", target_modules=["first"], **lora),
        "OLoRA": peft.LoraConfig(init_lora_weights="olora", target_modules=["first"], **lora),
        "OFT": peft.OFTConfig(r=0, oft_block_size=2, target_modules=["first"]),
    }


@pytest.mark.parametrize("name", [n for n in configurations() if n not in REFUSED])
def test_the_merge_is_that_of_peft(tmp_path: Path, name: str) -> None:
    base, expected = trained(configurations()[name], tmp_path)
    check(base, tmp_path, expected)


def test_biases_that_the_base_has_not_are_given_to_it_or_left_out(tmp_path: Path) -> None:
    base, expected = trained(configurations()["biases"], tmp_path)
    own = base.pop("first.bias")
    with pytest.raises(StructureError, match=r"first\.bias of .* is not in") as caught:
        merged(base, tmp_path)
    assert "biases (zeros" in str(caught.value)
    assert "--ignore '*.bias'" in str(caught.value)
    without = merged(base, tmp_path, ignore="*.bias")
    assert torch.allclose(without["first.weight"], expected["first.weight"], atol=1e-6)
    given = merged({**base, "first.bias": torch.zeros_like(own)}, tmp_path)
    assert torch.allclose(given["first.bias"] + own, expected["first.bias"], atol=1e-6)


def test_dora_of_turned_layers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    model = transformers.GPT2Model(transformers.GPT2Config(**size))
    config = peft.LoraConfig(
        r=2, use_dora=True, fan_in_fan_out=True, target_modules=["c_attn", "c_proj"]
    )
    model.save_pretrained(tmp_path / "base")
    _, expected = trained(config, tmp_path / "adapter", model)
    result = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    )
    for tensor, found in result.state_dict().items():
        assert torch.allclose(found, expected[tensor], rtol=1e-5, atol=1e-6), tensor


UNET = "down_blocks.0.attentions.0.transformer_blocks.0"


def kohya_dora(axis: str) -> tuple[State, State, State]:
    """A base, a DoRA in LyCORIS' manner with magnitudes of rows or columns, and W' in float64."""
    generator = torch.Generator().manual_seed(7)
    base = {
        f"{UNET}.attn1.to_q.weight": torch.randn(8, 12, generator=generator),
        "down_blocks.0.resnets.0.conv1.weight": torch.randn(8, 4, 3, 3, generator=generator),
    }
    adapter: State = {}
    expected: State = {}
    for name, weight in base.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        kernel = [1] * (weight.ndim - 2)
        up = torch.randn(8, 2, *kernel, generator=generator)
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        shape = (8, 1, *kernel) if axis == "out" else (1, weight.shape[1], *kernel)
        magnitude = torch.rand(shape, generator=generator) + 0.5
        adapter |= {
            f"{key}.lora_up.weight": up,
            f"{key}.lora_down.weight": down,
            f"{key}.alpha": torch.tensor(1.0),
            f"{key}.dora_scale": magnitude,
        }
        change = 0.5 * torch.einsum("or,r...->o...", up.flatten(1).double(), down.double())
        whole = weight.double() + change
        dims = [0, *range(2, weight.ndim)] if axis == "in" else list(range(1, weight.ndim))
        norm = whole.square().sum(dims, keepdim=True).sqrt()
        expected[name] = magnitude.double() * whole / norm
    return base, adapter, expected


@pytest.mark.parametrize("axis", ["out", "in"])
def test_lycoris_dora_rescales_rows_or_columns(tmp_path: Path, axis: str) -> None:
    base, adapter, expected = kohya_dora(axis)
    save_file(adapter, tmp_path / "dora.safetensors")
    found = merged(base, tmp_path / "dora.safetensors")
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("axis", ["out", "in"])
def test_pieces_of_dora_are_the_same_bits(tmp_path: Path, axis: str) -> None:
    from magmerge.checkpoints.adapters import AdapterExpert, open_adapter
    from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint

    base, adapter, _ = kohya_dora(axis)
    save_file(adapter, tmp_path / "dora.safetensors")
    opened = open_adapter(tmp_path / "dora.safetensors")
    for name, weight in base.items():
        whole = AdapterExpert("e", opened, MemoryCheckpoint(base)).delta(name, weight)
        again = AdapterExpert("e", opened, MemoryCheckpoint(base))
        for start in range(0, weight.numel(), 13):
            piece = weight.flatten()[start : start + 13].clone()
            found = again.delta(name, piece, start)
            assert torch.equal(found, whole.flatten()[start : start + 13])


def test_dora_in_the_folder_of_a_pipeline(tmp_path: Path) -> None:
    base, adapter, expected = kohya_dora("out")
    state = {}
    for name in base:
        module = name.removesuffix(".weight")
        key, own = f"lora_unet_{module.replace('.', '_')}", f"base_model.model.{module}"
        state[f"{own}.lora_A.weight"] = adapter[f"{key}.lora_down.weight"]
        state[f"{own}.lora_B.weight"] = adapter[f"{key}.lora_up.weight"]
        state[f"{own}.lora_magnitude_vector"] = adapter[f"{key}.dora_scale"].flatten()
    (tmp_path / "unet").mkdir()
    save_file(state, tmp_path / "unet" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "use_dora": True}
    (tmp_path / "unet" / "adapter_config.json").write_text(json.dumps(config))
    found = merged(base, tmp_path)
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor, rtol=1e-5, atol=1e-6), name


def test_a_row_of_zeros_stays_one(tmp_path: Path) -> None:
    base, adapter, _ = kohya_dora("out")
    name, key = f"{UNET}.attn1.to_q.weight", f"lora_unet_{UNET.replace('.', '_')}_attn1_to_q"
    base[name][3] = 0
    adapter[f"{key}.lora_up.weight"][3] = 0
    save_file(adapter, tmp_path / "dora.safetensors")
    assert not merged(base, tmp_path / "dora.safetensors")[name][3].any()


@pytest.mark.parametrize("name", ["DoRA", "IA3", "tokens"])
def test_what_is_no_change_without_its_base_is_merged_with_it(tmp_path: Path, name: str) -> None:
    base, expected = trained(configurations()[name], tmp_path / "a")
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match=r"no change without its base") as caught:
        magmerge.merge(experts=[tmp_path / "a"], method="average")
    assert "--base (base=)" in str(caught.value)
    with pytest.raises(AdapterError, match=r"no change without its base"):
        magmerge.convert(tmp_path / "a", tmp_path / "out", naming="kohya")
    result = magmerge.merge(
        base=tmp_path / "base.safetensors", experts=[tmp_path / "a"], params={"lambda": 1.0}
    )
    assert all(
        torch.allclose(result.state_dict()[key], expected[key], atol=1e-6) for key in expected
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_kind_is_merged_as_peft_s_whole_model(tmp_path: Path, name: str) -> None:
    base, expected = trained(configurations()[name], tmp_path)
    with pytest.raises(AdapterError, match=r"refused: ") as caught:
        merged(base, tmp_path)
    assert "merge_and_unload" in str(caught.value)
    result = magmerge.merge(base=base, experts={"e": expected}, params={"lambda": 1.0})
    assert all(
        torch.allclose(result.state_dict()[key], expected[key], atol=1e-6) for key in expected
    )


@pytest.mark.parametrize(
    "values", [{"peft_type": "PREFIX_TUNING"}, {"alora_invocation_tokens": [1, 2]}]
)
def test_what_no_merge_can_hold_is_left_out(tmp_path: Path, values: dict[str, Any]) -> None:
    base, expected = trained(configurations()["biases"], tmp_path / "lora")
    shutil.copytree(tmp_path / "lora", tmp_path / "other")
    told = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**told, **values}))
    with pytest.raises(AdapterError, match=r"refused: .*\n.*leave it out"):
        magmerge.merge(base=base, experts=[tmp_path / "lora", tmp_path / "other"])
    check(base, tmp_path / "lora", expected)


def test_tokens_that_the_base_has_not_are_a_fault(tmp_path: Path) -> None:
    base, _ = trained(configurations()["tokens"], tmp_path)
    base["embed.weight"] = base["embed.weight"][:10].clone()
    with pytest.raises(StructureError, match="rows up to 11 are replaced"):
        merged(base, tmp_path)


NORM, LAYER = "blocks.0.cross_attn.norm_q", "blocks.0.self_attn.q"


def comfy_file(folder: Path) -> tuple[State, Path, State]:
    """A base, and a file in ComfyUI's manner with differences of biases and norms."""
    generator = torch.Generator().manual_seed(2)
    base = {
        f"{LAYER}.weight": torch.randn(6, 5, generator=generator),
        f"{LAYER}.bias": torch.randn(6, generator=generator),
        f"{NORM}.weight": torch.randn(6, generator=generator),
        "head.weight": torch.randn(4, 6, generator=generator),
        "head.bias": torch.randn(4, generator=generator),
    }
    up, down = torch.randn(6, 2, generator=generator), torch.randn(2, 5, generator=generator)
    beside = {
        f"{LAYER}.diff_b": torch.randn(6, generator=generator),
        f"{NORM}.diff": torch.randn(6, generator=generator),
        "head.diff": torch.randn(4, 6, generator=generator),
        "head.diff_b": torch.randn(4, generator=generator),
    }
    adapter = {f"{LAYER}.lora_up.weight": up, f"{LAYER}.lora_down.weight": down, **beside}
    path = folder / "lightning.safetensors"
    save_file({f"diffusion_model.{key}": tensor for key, tensor in adapter.items()}, path)
    expected = {
        f"{LAYER}.weight": base[f"{LAYER}.weight"] + up @ down,
        f"{LAYER}.bias": base[f"{LAYER}.bias"] + beside[f"{LAYER}.diff_b"],
        f"{NORM}.weight": base[f"{NORM}.weight"] + beside[f"{NORM}.diff"],
        "head.weight": base["head.weight"] + beside["head.diff"],
        "head.bias": base["head.bias"] + beside["head.diff_b"],
    }
    return base, path, expected


def test_differences_of_weights_biases_and_norms(tmp_path: Path) -> None:
    base, path, expected = comfy_file(tmp_path)
    found = merged(base, path)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_differences_are_merged_without_a_base(tmp_path: Path) -> None:
    base, path, expected = comfy_file(tmp_path)
    other = {key: 2 * tensor for key, tensor in load_file(path).items()}
    save_file(other, tmp_path / "other.safetensors")
    out = tmp_path / "merged.safetensors"
    magmerge.merge(experts=[path, tmp_path / "other.safetensors"], method="average", out=out)
    found = merged(base, out)
    for name, tensor in expected.items():
        # Both factors of the module are twice the first's.
        factor = 2.5 if name == f"{LAYER}.weight" else 1.5
        wanted = base[name] + factor * (tensor - base[name])
        assert torch.allclose(found[name], wanted, atol=1e-5), name


def test_lora_biases_are_merged_without_a_base(tmp_path: Path) -> None:
    base, expected = trained(configurations()["biases"], tmp_path / "a")
    magmerge.convert(tmp_path / "a", tmp_path / "again", naming="peft")
    check(base, tmp_path / "again", expected)
    magmerge.merge(
        experts=[tmp_path / "a"], params={"lambda": 1.0}, rank="exact", out=tmp_path / "merged"
    )
    check(base, tmp_path / "merged", expected)


def test_a_bias_without_a_place_in_the_format_is_left_out_when_asked(tmp_path: Path) -> None:
    _, path, _ = comfy_file(tmp_path)
    with pytest.raises((StructureError, AdapterError), match=r"diff|bias or norm"):
        magmerge.merge(experts=[path], naming="diffusers", params={"lambda": 1.0})
