"""Adapters of diffusion models in every layout and naming, merged back onto their base."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import AdapterError, MagmergeWarning
from magmerge.core.types import Naming
from tests.conftest import Shapes, random_state
from tests.engine.adapters.test_extraction import changed, near

BLOCK = "transformer_blocks.0"
SD = "model.diffusion_model."
BASES: dict[str, Shapes] = {
    "a lone U-Net": {
        "conv_in.weight": (8, 4, 3, 3),
        f"down_blocks.0.attentions.0.{BLOCK}.attn1.to_q.weight": (8, 8),
        f"down_blocks.0.attentions.0.{BLOCK}.attn2.to_k.weight": (8, 12),
        "time_embedding.linear_1.weight": (16, 8),
        "up_blocks.0.upsamplers.0.conv.weight": (8, 8, 3, 3),
    },
    "SD1 in one file": {
        f"{SD}input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{SD}input_blocks.1.1.{BLOCK}.attn1.to_q.weight": (8, 8),
        f"{SD}input_blocks.1.1.{BLOCK}.attn2.to_k.weight": (8, 12),
        f"{SD}time_embed.0.weight": (16, 8),
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (6, 6),
    },
    "SDXL in one file": {
        f"{SD}input_blocks.1.1.proj_in.weight": (8, 8),
        f"{SD}label_emb.0.0.weight": (8, 8),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (6, 8),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": (18, 6),
        "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight": (12, 6),
    },
    "Flux in its own file": {
        "double_blocks.0.img_attn.qkv.weight": (24, 8),
        "single_blocks.0.linear1.weight": (56, 8),
        "final_layer.adaLN_modulation.1.weight": (16, 8),
        "img_in.weight": (8, 4),
    },
}
NAMINGS: dict[str, tuple[Naming, ...]] = {
    "a lone U-Net": ("diffusers", "diffusers_old", "kohya", "kohya_ldm"),
    "SD1 in one file": ("diffusers", "kohya", "kohya_ldm"),
    "SDXL in one file": ("diffusers", "kohya", "kohya_ldm"),
    "Flux in its own file": ("diffusers", "kohya", "kohya_flux"),
}


@pytest.mark.parametrize(
    ("name", "naming"), [(name, naming) for name in NAMINGS for naming in NAMINGS[name]]
)
def test_what_was_learnt_comes_back_under_every_naming(
    tmp_path: Path, name: str, naming: Naming
) -> None:
    base = random_state(0, BASES[name])
    model = changed(base, tuple(base), rank=2)
    save_file(base, tmp_path / "base.safetensors")
    save_file(model, tmp_path / "model.safetensors")
    files = {
        "base": tmp_path / "base.safetensors",
        "model": tmp_path / "model.safetensors",
        "out": tmp_path / "out.safetensors",
    }
    found = magmerge.extract(**files, rank=2, naming=naming)
    assert len(found.modules) == len(base)
    assert found.error < 1e-6
    merged = magmerge.merge(base=files["base"], experts=[files["out"]], method="average")
    assert near(merged.state_dict(), model)


def test_a_fused_projection_stays_one_module_in_flux_own_names(tmp_path: Path) -> None:
    base = random_state(0, BASES["Flux in its own file"])
    model = changed(base, tuple(base), rank=2)
    out = tmp_path / "out.safetensors"
    magmerge.extract(base=base, model=model, rank=2, naming="kohya_flux", out=out)
    written = load_file(out)
    assert len(written) == 3 * len(base)
    assert written["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (2, 8)


def test_parts_without_a_name_are_lost_or_a_mistake(tmp_path: Path) -> None:
    shapes = {**BASES["SD1 in one file"], "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)}
    base = random_state(0, shapes)
    with pytest.warns(MagmergeWarning, match="no name under kohya"):
        found = magmerge.extract(base=base, model=changed(base, tuple(base)), naming="kohya")
    assert [one.name for one in found.lost] == ["first_stage_model.decoder.conv_in.weight"]
    llama = {"model.layers.0.self_attn.q_proj.weight": random_state(0)["layers.0.attn.weight"]}
    with pytest.raises(AdapterError, match="kohya has no names for its modules"):
        magmerge.extract(base=llama, model=changed(llama, tuple(llama)), naming="kohya")


def test_modules_that_are_unchanged_stay_out(tmp_path: Path) -> None:
    base = random_state(0, BASES["a lone U-Net"])
    out = tmp_path / "out.safetensors"
    magmerge.extract(
        base=base, model=changed(base, ("conv_in.weight",)), naming="diffusers", out=out
    )
    assert set(load_file(out)) == {"unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"}


def test_a_pipeline_in_one_file_becomes_folders_that_may_be_replaced(tmp_path: Path) -> None:
    shapes: Shapes = {
        f"unet.down_blocks.0.attentions.0.{BLOCK}.attn1.to_q.weight": (8, 8),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight": (6, 6),
    }
    base = random_state(0, shapes)
    model, out = changed(base, tuple(base), rank=2), tmp_path / "out"
    for _ in range(2):
        magmerge.extract(base=base, model=model, rank=2, out=out, overwrite=True)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"unet", "text_encoder"}
    merged = magmerge.merge(base=base, experts=[out], method="average").state_dict()
    assert near(merged, model)
