"""Adapter files for tests: random factors under the keys of each program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 2, 3.0


def factors(shape: tuple[int, ...], seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """up and down of a module whose task vector has this shape."""
    generator = torch.Generator().manual_seed(seed)
    kernel = (1,) * len(shape[2:])
    up = torch.randn(shape[0], rank, *kernel, generator=generator)
    return up, torch.randn(rank, *shape[1:], generator=generator)


def write_adapter(path: Path, modules: Mapping[str, tuple[int, ...]], seed: int = 0) -> Path:
    """A file in kohya's manner, or in diffusers' where the names have dots."""
    state: dict[str, Tensor] = {}
    for place, (name, shape) in enumerate(modules.items()):
        up, down = factors(shape, seed + place)
        if "." in name:
            state |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
        else:
            state |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            state[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(state, path)
    return path


def product(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A module's task vector in float64, [out, everything else]."""
    up, down = factors(shape, seed)
    scale = 1.0 if "." in name else ALPHA / RANK
    return scale * up.double().flatten(1) @ down.double().flatten(1)
