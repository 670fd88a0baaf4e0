from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.checkpoints.adapters.translation import rename_content
from magmerge.core.errors import AdapterError
from tests.checkpoints.adapters import module_names as names
from tests.checkpoints.adapters.lora_files import (
    content_of,
    delta,
    deltas_of,
    opened,
    random_content,
    read_deltas,
    same,
)

NAME = "lora_unet_mid_block_attentions_0_proj_in"


def pair(out: int = 5, features: int = 3, rank: int = 2, name: str = NAME) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, features, generator=generator),
        f"{name}.lora_up.weight": torch.randn(out, rank, generator=generator),
    }


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        (torch.tensor(4.0), 2.0),
        (torch.tensor(1, dtype=torch.int64), 0.5),
        (torch.tensor([1.0], dtype=torch.bfloat16), 0.5),
        (torch.tensor(-3.0, dtype=torch.float16), -1.5),
        (None, 1.0),
    ],
)
def test_the_scale_is_alpha_by_rank_and_1_without_an_alpha(
    tmp_path: Path, alpha: Tensor | None, scale: float
) -> None:
    state = pair() if alpha is None else {**pair(), f"{NAME}.alpha": alpha}
    adapter = opened(state, tmp_path)
    assert adapter.modules[NAME].scale == scale
    up, down = state[f"{NAME}.lora_up.weight"], state[f"{NAME}.lora_down.weight"]
    assert torch.equal(delta(adapter.read(NAME)), scale * (up.double() @ down.double()))


@pytest.mark.parametrize("endings", [("lora_up", "lora_down"), ("lora_B", "lora_A")])
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_linear_layers_and_convolutions_with_either_ending(
    tmp_path: Path, endings: tuple[str, str], kernel: tuple[int, ...]
) -> None:
    up, down = torch.randn(5, 2, *(1 for _ in kernel)), torch.randn(2, 3, *kernel)
    state = {f"{NAME}.{endings[0]}.weight": up, f"{NAME}.{endings[1]}.weight": down}
    adapter = opened(state, tmp_path)
    spec = adapter.modules[NAME]
    assert spec.kind == ("convolution" if kernel else "linear")
    assert spec.shape == (5, 3, *kernel)
    factors = adapter.read(NAME)
    assert torch.equal(factors.up, up.flatten(1))
    assert torch.equal(factors.down, down)


@pytest.mark.parametrize(
    ("names", "naming"),
    [
        (["lora_unet_down_blocks_0_resnets_0_conv1"], "kohya"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1"], "kohya"),
        (["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_out_2"], "kohya_ldm"),
        (["lora_unet_input_blocks_4_1_proj_in"], "kohya_ldm"),
        (["lora_unet_double_blocks_0_img_mlp_0"], "kohya_flux"),
        (["lora_unet_final_layer_linear"], "kohya_flux"),
        (["lora_unet_blocks_0_self_attn_q"], "kohya"),
        (["lora_transformer_transformer_blocks_0_attn_to_q"], "kohya"),
        (["lycoris_layers_0_q"], "kohya"),
    ],
)
def test_the_flavour_is_told_by_the_names(tmp_path: Path, names: list[str], naming: str) -> None:
    state = {key: tensor for name in names for key, tensor in pair(name=name).items()}
    adapter = opened(state, tmp_path)
    assert adapter.naming == naming
    assert list(adapter.modules) == sorted(names)


def test_comfyuis_names_are_kohyas_with_dots(tmp_path: Path) -> None:
    state = {
        **pair(18, 6, name="diffusion_model.double_blocks.0.img_attn.qkv"),
        **pair(name="text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"),
        "diffusion_model.double_blocks.0.img_attn.qkv.alpha": torch.tensor(1.0),
    }
    adapter = opened(state, tmp_path)
    assert adapter.naming == "kohya_flux"
    assert adapter.modules["lora_unet_double_blocks_0_img_attn_qkv"].scale == 0.5
    assert "lora_te3_encoder_block_0_layer_0_SelfAttention_q" in adapter.modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = names.prefixed("unet", names.unet("sd"))
    content = rename_content(random_content(shapes), "kohya_ldm")
    content = dataclasses.replace(
        content,
        modules={
            n: LowRank(f.up.to(dtype), f.down.to(dtype), f.scale)
            for n, f in content.modules.items()
        },
    )
    encoded = encode(content)
    assert list(encoded) == [""]
    adapter = opened(encoded[""].tensors, tmp_path)
    assert adapter.naming == "kohya_ldm"
    assert same(read_deltas(adapter), deltas_of(content), 1e-7)
    again = encode(content_of(adapter))[""].tensors
    assert all(torch.equal(again[key], tensor) for key, tensor in encoded[""].tensors.items())


def test_the_header_is_carried_and_says_the_new_rank(tmp_path: Path) -> None:
    told = {"ss_base_model_version": "sd_v1", "ss_network_dim": "32", "ss_network_alpha": "16"}
    adapter = opened(pair(), tmp_path, **told)
    assert dict(adapter.metadata) == told
    metadata = encode(content_of(adapter))[""].metadata
    assert metadata == {**told, "ss_network_dim": "2", "ss_network_alpha": "2.0"}
    several = rename_content(random_content(names.prefixed("unet", names.unet("sd"))), "kohya")
    several = dataclasses.replace(several, metadata=told)
    assert encode(several)[""].metadata["ss_network_dim"] == "Dynamic"


def test_shared_factors_are_written_apart(tmp_path: Path) -> None:
    joined = {
        "lora_unet_double_blocks_0_img_attn_qkv": LowRank(
            torch.randn(18, 2), torch.randn(2, 6), 1.0
        )
    }
    content = Content("kohya_flux", joined, dict.fromkeys(joined, "linear"))
    split = rename_content(content, "diffusers")
    # safetensors itself refuses tensors that share memory.
    adapter = opened(encode(split)[""].tensors, tmp_path)
    assert same(read_deltas(adapter), deltas_of(split))


def test_what_only_pefts_format_holds_is_refused() -> None:
    content = Content(
        "kohya",
        {NAME: LowRank(torch.ones(2, 1), torch.ones(1, 3), 1.0)},
        {NAME: "embedding"},
        {"head.weight": torch.ones(2, 2)},
    )
    with pytest.raises(AdapterError, match=rf"head\.weight, {NAME}"):
        encode(content)
    with pytest.raises(AdapterError, match="without modules"):
        encode(Content("kohya", {}, {}))
