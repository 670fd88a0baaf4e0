"""Two LoRA adapters with the shapes of SDXL's UNet, random factors, as PEFT folders in float16."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CROSS = 2048
ATTENTIONS = (
    *((f"down_blocks.1.attentions.{i}", 640, 2) for i in range(2)),
    *((f"down_blocks.2.attentions.{i}", 1280, 10) for i in range(2)),
    ("mid_block.attentions.0", 1280, 10),
    *((f"up_blocks.0.attentions.{i}", 1280, 10) for i in range(3)),
    *((f"up_blocks.1.attentions.{i}", 640, 2) for i in range(3)),
)
"""Where transformer blocks are, their width, and how many there are: 70 in all, 722 modules."""


def shapes(blocks: int, every: int) -> dict[str, tuple[int, int]]:
    """Each adapted module's [out, in], of each of some attentions at most `blocks` transformer
    blocks; `every` 5 takes each fifth attention.
    """
    found: dict[str, tuple[int, int]] = {}
    for place, width, depth in ATTENTIONS[::every]:
        found[f"{place}.proj_in"] = found[f"{place}.proj_out"] = (width, width)
        for number in range(min(depth, blocks)):
            block = f"{place}.transformer_blocks.{number}"
            for attention, inner in (("attn1", width), ("attn2", CROSS)):
                found[f"{block}.{attention}.to_q"] = (width, width)
                found[f"{block}.{attention}.to_k"] = (width, inner)
                found[f"{block}.{attention}.to_v"] = (width, inner)
                found[f"{block}.{attention}.to_out.0"] = (width, width)
            found[f"{block}.ff.net.0.proj"] = (8 * width, width)
            found[f"{block}.ff.net.2"] = (width, 4 * width)
    return found


def main() -> None:
    """Write expert-1 and expert-2 into the folder given; of what rank and shapes, is given too."""
    folder, rank, blocks, every = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    modules = shapes(blocks, every)
    for number in (1, 2):
        place = folder / f"expert-{number}"
        if (place / "adapter_config.json").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        draw, tensors = torch.Generator().manual_seed(number), {}
        for name, (out, features) in modules.items():
            key = f"base_model.model.{name}"
            up = torch.randn(out, rank, generator=draw) * 0.02
            down = torch.randn(rank, features, generator=draw) / features**0.5
            tensors[f"{key}.lora_B.weight"] = up.half()
            tensors[f"{key}.lora_A.weight"] = down.half()
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": sorted(modules),
            "base_model_name_or_path": "",
        }
        (place / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
