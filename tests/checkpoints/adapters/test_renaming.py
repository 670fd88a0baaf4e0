from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.checkpoints.adapters.translation import common_naming, rename_content, renamed
from magmerge.core.errors import AdapterError
from magmerge.core.types import Naming
from tests.checkpoints.adapters import module_names as names
from tests.checkpoints.adapters.lora_files import (
    content_of,
    deltas_of,
    random_content,
    read_deltas,
    same,
    write,
)

PLAIN: list[Naming] = ["diffusers", "diffusers_old", "kohya", "peft"]
WITH_LDM: list[Naming] = [*PLAIN, "kohya_ldm"]
OF_FLUX: list[Naming] = ["diffusers", "kohya", "peft", "kohya_flux"]


def some(shapes: names.Shapes, parts: Sequence[str]) -> names.Shapes:
    """One module for each of the parts of names."""
    return {
        next(name for name in shapes if part in name): shapes[
            next(name for name in shapes if part in name)
        ]
        for part in parts
    }


def sd() -> names.Shapes:
    unet = names.prefixed("unet", names.unet("sd"))
    part = {name: unet[name] for number, name in enumerate(unet) if number % 3 == 0}
    return {**part, **names.prefixed("text_encoder", names.clip())}


def sdxl() -> names.Shapes:
    parts = [
        "conv_in",
        "add_embedding.linear_1",
        "time_embedding.linear_2",
        "down_blocks.0.resnets.1.conv2",
        "down_blocks.1.resnets.0.conv_shortcut",
        "down_blocks.1.downsamplers.0.conv",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj",
        "mid_block.resnets.1.conv1",
        "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.attentions.0.proj_in",
        "conv_out",
    ]
    encoders = {
        **names.prefixed("text_encoder", names.clip(1)),
        **names.prefixed("text_encoder_2", {**names.clip(1), "text_projection": (6, 6)}),
    }
    return {**some(names.prefixed("unet", names.unet("sdxl")), parts), **encoders}


def flux() -> names.Shapes:
    encoders = {
        **names.prefixed("text_encoder", names.clip(1)),
        **names.prefixed("text_encoder_2", names.t5()),
    }
    return {**names.prefixed("transformer", names.flux()), **encoders}


FAMILIES = {"sd": (sd, WITH_LDM), "sdxl": (sdxl, WITH_LDM), "flux": (flux, OF_FLUX)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_of_namings_keeps_every_task_vector(tmp_path: Path, family: str) -> None:
    shapes, namings = FAMILIES[family]
    content = random_content(shapes())
    truth = deltas_of(content)
    for number, naming in enumerate(namings):
        file = write(rename_content(content, naming), tmp_path / f"{number}.safetensors")
        adapter = open_adapter(file)
        assert adapter.naming == naming
        for other in namings:
            there = renamed(adapter, other)
            assert there.naming == other
            path = write(content_of(there), tmp_path / f"{number}-{other}.safetensors")
            back = renamed(open_adapter(path), "diffusers")
            assert same(read_deltas(back), truth), (naming, other)


def test_names_are_those_of_the_programs_that_made_them() -> None:
    content = random_content(sdxl())
    ldm = set(rename_content(content, "kohya_ldm").modules)
    assert "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k" in ldm
    assert "lora_unet_output_blocks_2_2_conv" in ldm
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in ldm
    assert "lora_te2_text_projection" in ldm
    old = set(rename_content(random_content(sd()), "kohya").modules)
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in old
    own = set(rename_content(random_content(flux()), "kohya_flux").modules)
    assert "lora_unet_single_blocks_0_linear1" in own
    assert "lora_te3_encoder_block_3_layer_0_SelfAttention_q" in own


def test_a_transformer_is_known_under_either_prefix() -> None:
    for prefix in ("lora_unet", "lora_transformer"):
        shapes = {f"{prefix}_single_transformer_blocks_3_proj_mlp": (8, 2)}
        content = dataclasses.replace(random_content(shapes), naming="kohya")
        found = list(rename_content(content, "diffusers").modules)
        assert found == ["transformer.single_transformer_blocks.3.proj_mlp"]


def fused(*, shared: bool, scales: tuple[float, ...], leave: Sequence[int] = ()) -> Content:
    """q, k and v of a block of Flux."""
    generator = torch.Generator().manual_seed(7)
    down = torch.randn(2, 6, generator=generator)
    modules = {}
    for at, (part, scale) in enumerate(zip(("to_q", "to_k", "to_v"), scales, strict=True)):
        own = down.clone() if shared else torch.randn(2, 6, generator=generator)
        factors = LowRank(torch.randn(6, 2, generator=generator), own, scale)
        if at not in leave:
            modules[f"transformer.transformer_blocks.4.attn.{part}"] = factors
    return Content("diffusers", modules, dict.fromkeys(modules, "linear"))


QKV = "lora_unet_double_blocks_4_img_attn_qkv"


@pytest.mark.parametrize(
    ("content", "rank"),
    [
        (fused(shared=True, scales=(0.5, 0.5, 0.5)), 2),
        (fused(shared=True, scales=(0.5, 1.0, 0.3)), 2),
        (fused(shared=False, scales=(0.5, 0.5, 0.5)), 6),
        (fused(shared=False, scales=(0.5, 1.0, 0.3)), 6),
        (fused(shared=False, scales=(0.5, 1.0, 0.3), leave=[1]), 4),
        (fused(shared=False, scales=(0.5, 1.0, 0.3), leave=[0, 1]), 2),
    ],
    ids=["shared", "shared, scales differ", "stacked", "scales differ", "without k", "only v"],
)
def test_fused_projections_are_put_together_exactly(content: Content, rank: int) -> None:
    joined = rename_content(content, "kohya_flux")
    assert list(joined.modules) == [QKV]
    assert len(joined.modules[QKV].down) == rank
    q, k, v = deltas_of(joined)[QKV].split(6)
    wanted = deltas_of(content)
    for part, found in (("to_q", q), ("to_k", k), ("to_v", v)):
        own = wanted.get(f"transformer.transformer_blocks.4.attn.{part}", torch.zeros(6, 6))
        assert float((found - own).norm()) <= 1e-6 * float(own.norm())


def test_equal_scales_leave_halves_bit_for_bit() -> None:
    content = fused(shared=False, scales=(0.5, 0.5, 0.5))
    halves = {n: LowRank(f.up.half(), f.down.half(), f.scale) for n, f in content.modules.items()}
    joined = rename_content(dataclasses.replace(content, modules=halves), "kohya_flux").modules[QKV]
    assert joined.up.dtype == joined.down.dtype == torch.float16
    first = halves["transformer.transformer_blocks.4.attn.to_q"]
    assert torch.equal(joined.up[:6, :2], first.up)
    assert torch.equal(joined.down[:2], first.down)
    assert joined.scale == 0.5


def test_the_last_layers_scale_and_shift_change_places() -> None:
    name = "transformer.norm_out.linear"
    content = random_content({name: (8, 3)})
    own = deltas_of(rename_content(content, "kohya_flux"))[
        "lora_unet_final_layer_adaLN_modulation_1"
    ]
    wanted = deltas_of(content)[name]
    assert torch.allclose(own, torch.cat([wanted[4:], wanted[:4]]))


def test_one_text_encoder_or_model_alone_has_no_folder_of_its_own(tmp_path: Path) -> None:
    for shapes, folder in (
        (names.prefixed("unet", {"conv_in": (4, 2, 3, 3)}), ""),
        (names.prefixed("text_encoder", names.clip(1)), ""),
        (names.prefixed("text_encoder_2", names.clip(1)), "text_encoder_2"),
    ):
        content = random_content(shapes)
        path = write(rename_content(content, "peft"), tmp_path / f"{len(shapes)}{folder}")
        assert (path / folder / "adapter_config.json").is_file()
        assert same(read_deltas(renamed(open_adapter(path), "diffusers")), deltas_of(content))


def test_gpt_2_is_no_diffusion_model(tmp_path: Path) -> None:
    shapes = {"transformer.h.0.attn.c_attn": (9, 6), "transformer.proj_out": (6, 6)}
    content = dataclasses.replace(random_content(shapes), naming="peft")
    path = write(content, tmp_path / "a")
    assert (path / "adapter_config.json").is_file()
    assert set(open_adapter(path).modules) == set(shapes)
    with pytest.raises(AdapterError, match="c_attn"):
        rename_content(content, "diffusers")


LANGUAGE_MODEL = {"model.layers.0.self_attn.q_proj": (6, 6), "transformer.h.0.attn.c_attn": (9, 6)}


@pytest.mark.parametrize("naming", ["kohya", "kohya_ldm", "kohya_flux", "diffusers"])
def test_a_language_models_adapter_stays_in_pefts_format(naming: Naming) -> None:
    content = dataclasses.replace(random_content(LANGUAGE_MODEL), naming="peft")
    content = dataclasses.replace(content, whole={"classifier.weight": torch.zeros(2, 2)})
    with pytest.raises(AdapterError) as caught:
        rename_content(content, naming)
    for name in (*LANGUAGE_MODEL, "classifier.weight"):
        assert name in str(caught.value)


def test_every_module_without_a_name_there_is_listed(tmp_path: Path) -> None:
    shapes = {f"lora_unet_layers_{at}_mixer_q": (6, 6) for at in range(12)}
    shapes["lora_unet_conv_in"] = (4, 4, 3, 3)
    content = dataclasses.replace(random_content(shapes), naming="kohya")
    adapter = open_adapter(write(content, tmp_path / "a.safetensors"))
    with pytest.raises(AdapterError) as caught:
        renamed(adapter, "diffusers")
    assert all((name in str(caught.value)) == ("mixer" in name) for name in shapes)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "naming", "problem"),
    [
        ({"lora_unet_single_blocks_0_linear1": (54, 6)}, "kohya_flux", "7 rows for each column"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (19, 6)}, "kohya_flux", "3 rows for each"),
        ({"lora_unet_final_layer_adaLN_modulation_1": (7, 6)}, "kohya_flux", "no scale and shift"),
    ],
)
def test_shapes_that_are_not_fluxs_are_not_taken_apart(
    shapes: names.Shapes, naming: Naming, problem: str
) -> None:
    content = dataclasses.replace(random_content(shapes), naming=naming)
    with pytest.raises(AdapterError, match=problem):
        rename_content(content, "diffusers")


def test_two_modules_that_become_one_are_an_error() -> None:
    shapes = {"lora_unet_conv_in": (4, 4), "lora_unet_input_blocks_0_0": (4, 4)}
    content = dataclasses.replace(random_content(shapes), naming="kohya_ldm")
    with pytest.raises(AdapterError, match=r"are both unet\.conv_in"):
        rename_content(content, "diffusers")


def test_a_common_naming_is_the_files_own_if_it_is_one(tmp_path: Path) -> None:
    content = random_content(sd())
    files = [
        write(rename_content(content, naming), tmp_path / f"{at}.safetensors")
        for at, naming in enumerate(WITH_LDM)
    ]
    adapters = [open_adapter(file) for file in files]
    alone = common_naming(adapters[2:3] * 2)
    assert [one.naming for one in alone] == ["kohya", "kohya"]
    assert all(one is adapters[2] for one in alone)
    together = common_naming(adapters)
    assert {one.naming for one in together} == {"diffusers"}
    assert all(set(one.modules) == set(content.modules) for one in together)


def test_pefts_folders_of_one_and_of_several_models_meet(tmp_path: Path) -> None:
    unet = names.prefixed("unet", {"conv_in": (4, 2, 3, 3)})
    both = {**unet, **names.prefixed("text_encoder", names.clip(1))}
    adapters = [
        open_adapter(write(rename_content(random_content(shapes), "peft"), tmp_path / name))
        for name, shapes in (("one", unet), ("both", both))
    ]
    first, second = common_naming(adapters)
    assert set(first.modules) < set(second.modules)


def test_where_only_pefts_names_meet_they_are_taken(tmp_path: Path) -> None:
    inside = {"blocks.0.attn1.to_q": (6, 6), "blocks.1.ffn.net.2": (6, 6)}
    one = random_content(names.prefixed("transformer", inside))
    other = dataclasses.replace(random_content(inside), naming="peft")
    adapters = [
        open_adapter(write(one, tmp_path / "a.safetensors")),
        open_adapter(write(other, tmp_path / "b")),
    ]
    first, second = common_naming(adapters)
    assert set(first.modules) == set(second.modules) == set(inside)


def test_what_has_no_common_naming_is_listed(tmp_path: Path) -> None:
    other = dataclasses.replace(random_content(LANGUAGE_MODEL), naming="peft")
    adapters = [
        open_adapter(write(random_content(sd()), tmp_path / "a.safetensors")),
        open_adapter(write(other, tmp_path / "b")),
    ]
    with pytest.raises(AdapterError, match=r"q_proj(.|\n)*c_attn"):
        common_naming(adapters)


def test_wan_of_its_authors_and_of_diffusers_are_merged_under_diffusers_names(
    tmp_path: Path,
) -> None:
    own = {"lora_unet_blocks_0_self_attn_o": (6, 6), "lora_unet_blocks_0_ffn_2": (6, 9)}
    content = dataclasses.replace(random_content(own), naming="kohya")
    adapter = renamed(open_adapter(write(content, tmp_path / "a.safetensors")), "diffusers")
    names = ["transformer.blocks.0.attn1.to_out.0", "transformer.blocks.0.ffn.net.2"]
    assert set(adapter.modules) == set(names)
    for old, new in zip(own, names, strict=True):
        up, down, scale = adapter.read(new)
        factors = content.modules[old]
        torch.testing.assert_close(scale * up @ down, factors.scale * factors.up @ factors.down)


def test_the_modulation_of_sd3s_last_block_is_refused() -> None:
    """Its rows have another order in the last block only, and an adapter does not tell which."""
    shapes = {
        "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1": (36, 6),
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (18, 6),
    }
    content = dataclasses.replace(random_content(shapes), naming="kohya")
    with pytest.raises(AdapterError, match="1 of its modules"):
        rename_content(content, "diffusers")
