"""What is written loads in the libraries that people use it with, and does there what it says."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

import magmerge
from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from tests.checkpoints.adapters.standins import full

SPHERE = {"method": "wsc", "params": {"target": "sphere"}}
TARGETS = ("attn1.to_q", "attn2.to_k", "attn1.to_out.0", "ff.net.2")


def tiny() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()


def adapter_of(model: nn.Module, path: Path, seed: int, rank: int) -> Path:
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, layer in model.named_modules():
        if name.endswith(TARGETS):
            out, features = layer.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, features, generator=draw)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(out, rank, generator=draw)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_diffusers_and_peft_load_a_merged_adapter(tmp_path: Path) -> None:
    model, plain = tiny(), tiny()
    experts = [adapter_of(plain, tmp_path / f"{n}.safetensors", n, 2 + n) for n in range(2)]
    wanted = {"experts": experts, "method": "average", "calibrate": SPHERE, "rank": 3}
    file = magmerge.merge(**wanted, out=tmp_path / "both.safetensors").path
    folder = magmerge.merge(**wanted, naming="peft", out=tmp_path / "both").path
    assert file is not None
    assert folder is not None
    opened = open_adapter(file)
    deltas = {name.removeprefix("unet."): full(opened.read(name)) for name in opened.modules}
    assert len(deltas) == sum(name.endswith(TARGETS) for name, _ in plain.named_modules())

    model.load_lora_adapter(str(file), prefix="unet")
    model.fuse_lora()
    within = PeftModel.from_pretrained(tiny(), folder).merge_and_unload()
    for name, delta in deltas.items():
        before = plain.get_submodule(name).weight.double()
        fused = model.get_submodule(name)
        fused = getattr(fused, "base_layer", fused).weight.double()
        assert torch.allclose(fused, before + delta, atol=1e-5), name
        own = within.get_submodule(name).weight.double()
        assert torch.allclose(own, before + delta, atol=1e-5), name
