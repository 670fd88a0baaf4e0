"""Weights of 8 bits: what they stand for is merged, whatever form their scales have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import StructureError
from tests.conftest import State
from tests.quick import examples

LAYER = "model.layers.0.mlp.up_proj"
SHAPE = (300, 200)
Form = Callable[[Tensor], tuple[Tensor, Tensor]]


def numbers(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 448
    return scale, scale.expand_as(weight)


def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return scale, scale.expand_as(weight)


def by_row_flat(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale, spread = by_row(weight)
    return scale.reshape(-1), spread


def by_block(weight: Tensor, side: int = 128) -> tuple[Tensor, Tensor]:
    rows, columns = (-(-size // side) for size in weight.shape)
    scale = torch.rand(rows, columns, generator=torch.Generator().manual_seed(3)) + 0.5
    spread = torch.empty_like(weight)
    for i in range(rows):
        for j in range(columns):
            spread[i * side : (i + 1) * side, j * side : (j + 1) * side] = scale[i, j]
    return scale, spread


def stored(weight: Tensor, form: Form, name: str) -> tuple[State, Tensor]:
    """A weight and its scale under that name, and the numbers that they stand for."""
    scale, spread = form(weight)
    eight = (weight / spread).to(torch.float8_e4m3fn)
    own = {f"{LAYER}.weight": eight, f"{LAYER}.{name}": scale}
    return own, (eight.double() * spread.double())


def folder(path: Path, state: State, config: dict[str, Any] | None) -> Path:
    path.mkdir()
    norm = {"model.norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    save_file({**norm, **state}, path / "model.safetensors")
    about: dict[str, Any] = {"model_type": "llama", "dtype": "bfloat16"}
    if config is not None:
        about["quantization_config"] = config
    (path / "config.json").write_text(json.dumps(about))
    return path


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FORMS = {
    "deepseek": (by_block, "weight_scale_inv", FP8),
    "small blocks": (
        lambda weight: by_block(weight, 16), "weight_scale_inv",
        {"quant_method": "fp8", "weight_block_size": [16, 16]},
    ),
    "a block without a config": (by_block, "weight_scale_inv", None),
    "compressed by row": (by_row, "weight_scale", {"quant_method": "compressed-tensors"}),
    "compressed by tensor": (by_tensor, "weight_scale", {"quant_method": "compressed-tensors"}),
    "modelopt": (by_tensor, "weight_scale", {"quant_method": "modelopt"}),
    "fbgemm": (by_row_flat, "weight_scale", {"quant_method": "fbgemm_fp8"}),
    "comfy": (by_tensor, "scale_weight", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("who", ["base", "expert"])
def test_scaled_weights_are_merged_as_what_they_stand_for(
    tmp_path: Path, kind: str, who: str
) -> None:
    form, name, config = FORMS[kind]
    own, meant = stored(numbers(0), form, name)
    plain = numbers(1)
    eight = folder(tmp_path / "eight", {**own, f"{LAYER}.input_scale": torch.ones(())}, config)
    other = folder(tmp_path / "other", {f"{LAYER}.weight": plain}, None)
    base, expert = (eight, other) if who == "base" else (other, eight)
    with pytest.warns(magmerge.MagmergeWarning, match="1 times their scales"):
        magmerge.merge(
            base=base, experts=[expert], params={"lambda": 0.3}, out=tmp_path / "out", dtype="fp32"
        )
    result = load_file(tmp_path / "out" / "model.safetensors")
    first, second = (meant, plain.double()) if who == "base" else (plain.double(), meant)
    right = first + 0.3 * (second - first)
    assert float((result[f"{LAYER}.weight"] - right).abs().max()) < 1e-5
    assert set(result) == {"model.norm.weight", f"{LAYER}.weight"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_result_is_bfloat16_where_nothing_else_is_said(tmp_path: Path) -> None:
    states = [stored(numbers(seed), by_block, "weight_scale_inv") for seed in range(2)]
    models = [folder(tmp_path / str(i), own, FP8) for i, (own, _) in enumerate(states)]
    with pytest.warns(magmerge.MagmergeWarning, match="8 bits"):
        result = magmerge.merge(base=models[0], experts=[models[1]], params={"lambda": 1})
    merged = result.state_dict()[f"{LAYER}.weight"]
    assert result.recipe.output.dtype == "BF16"
    assert torch.equal(merged, states[1][1].to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_casts_are_their_own_values(tmp_path: Path, dtype: torch.dtype) -> None:
    casts = [{"a.weight": numbers(i).to(dtype), "a.bias": torch.ones(3)} for i in range(2)]
    for i, state in enumerate(casts):
        save_file(state, tmp_path / f"{i}.safetensors")
    models = {"base": tmp_path / "0.safetensors", "experts": [tmp_path / "1.safetensors"]}
    with pytest.warns(magmerge.MagmergeWarning, match="1 that have no scale as they are"):
        result = magmerge.merge(**models, params={"lambda": 1}).state_dict()
    assert result["a.weight"].dtype == torch.bfloat16
    assert torch.equal(result["a.weight"].float(), casts[1]["a.weight"].float())


def test_comfys_marker_is_dropped_and_a_lost_scale_is_refused(tmp_path: Path) -> None:
    own, meant = stored(numbers(0), by_tensor, "scale_weight")
    marker = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save_file({**own, **marker}, tmp_path / "e.safetensors")
    save_file({f"{LAYER}.weight": numbers(1)}, tmp_path / "b.safetensors")
    models = {"base": tmp_path / "b.safetensors", "experts": [tmp_path / "e.safetensors"]}
    with pytest.warns(magmerge.MagmergeWarning, match="1 times their scales"):
        result = magmerge.merge(**models, params={"lambda": 1}).state_dict()
    assert float((result[f"{LAYER}.weight"] - meant).abs().max()) < 1e-5
    del own[f"{LAYER}.scale_weight"]
    save_file({**own, **marker}, tmp_path / "e.safetensors")
    with pytest.raises(StructureError, match="is quantised"):
        magmerge.merge(**models)


def test_fused_experts_have_a_block_scale_for_each(tmp_path: Path) -> None:
    weight = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    eight, scale = weight.to(torch.float8_e4m3fn), torch.rand(3, 2, 2) + 0.5
    config = {"quant_method": "fp8", "weight_block_size": [16, 8]}
    state = {"mlp.experts.up_proj": eight, "mlp.experts.up_proj_scale_inv": scale}
    read = open_checkpoint(folder(tmp_path / "m", state, config)).read("mlp.experts.up_proj")
    spread = scale.repeat_interleave(16, 1)[:, :20].repeat_interleave(8, 2)[:, :, :12]
    assert torch.equal(read, eight.float() * spread)


def test_what_is_four_bits_beside_is_refused(tmp_path: Path) -> None:
    """NVFP4: packed weights, whose scales are 8 bits and have a scale themselves."""
    state = {
        f"{LAYER}.weight": torch.zeros(8, 4, dtype=torch.uint8),
        f"{LAYER}.weight_scale": torch.ones(8, 1).to(torch.float8_e4m3fn),
        f"{LAYER}.weight_scale_2": torch.ones(()),
    }
    expert = folder(tmp_path / "e", state, {"quant_method": "modelopt"})
    with pytest.raises(StructureError, match="is quantised"):
        magmerge.merge(base={f"{LAYER}.weight": torch.ones(8, 8)}, experts=[expert])


@settings(max_examples=examples(60), deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), block=st.integers(1, 5), data=st.data())
def test_any_part_is_that_of_the_whole(
    rows: int, columns: int, block: int, data: st.DataObject
) -> None:
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // block), -(-columns // block)) + 0.5
    if scale.numel() > 1 and block > 1:
        # Without a config blocks of 128 are meant; one number for each row and column has no block.
        return
    read = open_checkpoint({"a.weight": weight, "a.weight_scale": scale})
    spread = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    whole = (weight.float() * spread).reshape(-1)
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    assert torch.equal(read.read_part("a.weight", start, stop), whole[start:stop])


def test_mxfp4_experts_are_the_numbers_that_they_are(tmp_path: Path) -> None:
    """gpt-oss: its blocks and scales, beside transformers' own reading of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 2), generator=generator, dtype=torch.uint8)
    state = {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.ones(3, 10)}
    eight = folder(tmp_path / "m", state, {"quant_method": "mxfp4"})
    right = convert_moe_packed_tensors(blocks, scales)
    read = open_checkpoint(eight)
    assert torch.equal(read.read(name), right)
    flat = right.reshape(-1)
    for start, stop in ((0, 7), (637, 645), (1000, len(flat))):
        assert torch.equal(read.read_part(name, start, stop), flat[start:stop])
    plain = folder(tmp_path / "e", {name: right + 1, f"{name}_bias": torch.zeros(3, 10)}, None)
    with pytest.warns(magmerge.MagmergeWarning, match="1 tensors in MXFP4"):
        magmerge.merge(base=eight, experts=[plain], params={"lambda": 1}, out=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {n: t.dtype for n, t in merged.items()} == dict.fromkeys(merged, torch.bfloat16)
    assert float((merged[name].float() - right.float() - 1).abs().max()) < 2**-4 * right.abs().max()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config


def test_an_adapter_is_added_to_what_a_base_stands_for(tmp_path: Path) -> None:
    from tests.checkpoints.adapters.files import write_adapter

    own, meant = stored(numbers(0), by_block, "weight_scale_inv")
    base = folder(tmp_path / "base", own, FP8)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter / "adapter_model.safetensors", {LAYER: SHAPE})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    factors = load_file(adapter / "adapter_model.safetensors")
    rank = next(t.shape[0] for name, t in factors.items() if "lora_A" in name)
    up, down = (
        next(t.double() for name, t in factors.items() if part in name)
        for part in ("lora_B", "lora_A")
    )
    with pytest.warns(magmerge.MagmergeWarning, match="1 times their scales"):
        result = magmerge.merge(base=base, experts=[adapter], params={"lambda": 1}, dtype="float32")
    right = meant + 2 / config["r"] * up @ down
    assert rank == config["r"]
    assert float((result.state_dict()[f"{LAYER}.weight"] - right).abs().max()) < 1e-5


@pytest.mark.parametrize("form", ["pickle", "memory"])
def test_plain_casts_of_other_kinds_of_models_are_read_too(tmp_path: Path, form: str) -> None:
    state = {"a.weight": numbers(0).to(torch.float8_e4m3fn)}
    torch.save({"state_dict": state}, tmp_path / "m.pt")
    read = open_checkpoint(state if form == "memory" else tmp_path / "m.pt")
    assert torch.equal(read.read("a.weight").float(), state["a.weight"].float())
