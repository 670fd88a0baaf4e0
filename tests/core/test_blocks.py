"""Blocks of image models by the names that users of LoRAs know, as filters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import magmerge
from magmerge.core.blocks import Blocks
from magmerge.core.errors import StructureError
from magmerge.core.filters import Filters
from magmerge.engine.adapters.adapter_result import AdapterResult
from magmerge.report.adapter_table import modules_table

KOHYA = "lora_unet_{}_proj_in"
SD1 = {
    "IN01": "down_blocks_0_attentions_0",
    "IN02": "down_blocks_0_attentions_1",
    "IN04": "down_blocks_1_attentions_0",
    "IN05": "down_blocks_1_attentions_1",
    "IN07": "down_blocks_2_attentions_0",
    "IN08": "down_blocks_2_attentions_1",
    "MID": "mid_block_attentions_0",
    **{f"OUT{3 * i + j:02d}": f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(3)},
}
PRESETS = {
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("name", "block"),
    [
        *((KOHYA.format(inner), block) for block, inner in SD1.items()),
        (TEXT, "BASE"),
        ("lora_unet_down_blocks_2_downsamplers_0_conv", "IN09"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("lora_unet_input_blocks_8_1_proj_in", "IN08"),
        ("model.diffusion_model.output_blocks.11.0.in_layers.2.weight", "OUT11"),
        ("model.diffusion_model.middle_block.1.proj_in.weight", "MID"),
        ("down_blocks.1.resnets.1.conv1.weight", "IN05"),
        ("lora_unet_double_blocks_7_img_attn_qkv", "D07"),
        ("transformer.transformer_blocks.3.attn.to_q", "D03"),
        ("transformer.single_transformer_blocks.21.attn.to_q", "S21"),
        ("single_blocks.37.linear1.weight", "S37"),
        ("model.layers.0.mlp.down_proj.weight", None),
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", None),
    ],
)
def test_the_block_of_a_name(name: str, block: str | None) -> None:
    names = [name, "model.diffusion_model.input_blocks.0.0.weight"]
    assert Blocks(names if name.startswith("first") else [name]).block_of(name) == block


@pytest.mark.parametrize(("preset", "weights"), PRESETS.items())
def test_presets_are_those_of_lora_block_weight(preset: str, weights: str) -> None:
    names = [TEXT, *(KOHYA.format(inner) for inner in SD1.values())]
    filters = Filters(names)
    assert [filters.takes(preset, name) for name in names] == [x == "1" for x in weights.split(",")]


def test_sdxl_has_presets_of_its_own() -> None:
    inner = {
        **{f"IN{n:02d}": f"input_blocks_{n}_1" for n in (4, 5, 7, 8)},
        "MID": "middle_block_1",
        **{f"OUT{n:02d}": f"output_blocks_{n}_1" for n in range(6)},
    }
    names = {block: KOHYA.format(own) for block, own in inner.items()}
    filters = Filters(names.values())
    taken = {block for block, name in names.items() if filters.takes("MIDD", name)}
    assert taken == {"IN07", "IN08", "MID", "OUT00", "OUT01", "OUT02"}


def test_a_preset_weighs_experts_block_by_block(tmp_path: Path) -> None:
    names = [TEXT, *(KOHYA.format(inner) for inner in SD1.values())]
    paths = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for name in names:
            state[f"{name}.lora_down.weight"] = torch.randn(1, 4, generator=generator)
            state[f"{name}.lora_up.weight"] = torch.randn(6, 1, generator=generator)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(state, paths[-1])
    items = [{"filter": "OUTS", "value": [1.0, 0.5]}, {"value": [1.0, 0.0]}]
    params = {"lambda": 1.0, "weights": items}
    merged = magmerge.merge(experts=paths, params=params, rank="exact")
    assert isinstance(merged, AdapterResult)
    header, block = (
        (c.header, list(c.cells)) for c in modules_table(merged.modules, "ab").columns[:2]
    )
    assert (header[0], block[0]) == ("module", "block")
    assert set(block[1]) == {"BASE", *SD1}
    result = merged.state_dict()
    first, second = (magmerge.merge(experts=[p], params={"lambda": 1.0}) for p in paths)
    for name in names:
        a, b, found = (
            state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"]
            for state in (first.state_dict(), second.state_dict(), result)
        )
        own = Blocks(names).block_of(name)
        on = own == "BASE" or (own is not None and own >= "OUT07")
        assert torch.allclose(found, a + (0.5 if on else 0.0) * b, atol=1e-5), name
    wrong = {"lambda": [{"filter": "IN06", "value": 0.0}, {"value": 1.0}]}
    with pytest.raises(StructureError, match="this model has the blocks BASE, IN01"):
        magmerge.merge(experts=paths, params=wrong)


def test_other_models_keep_their_filters() -> None:
    filters = Filters(["MID.weight", "model.BASE.weight"])
    assert filters.blocks is None
    assert filters.takes("MID", "MID.weight")
    assert filters.takes("BASE", "model.BASE.weight")


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_name_has_a_block_or_none(names: list[str]) -> None:
    blocks = Blocks(names)
    assert all(isinstance(blocks.block_of(name), str | None) for name in names)
