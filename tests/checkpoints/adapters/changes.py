"""Fine-tuned models whose change is of low rank, for tests of extraction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.conftest import State

LAYERS = ("layers.0.attn.weight", "layers.0.mlp.weight", "layers.0.conv.weight")


def low_rank(shape: torch.Size, rank: int, seed: int, size: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, math.prod(shape[1:]), generator=generator, dtype=torch.float64)
    return (size * left @ right).reshape(shape)


def changed(base: State, names: tuple[str, ...] = LAYERS, rank: int = 3) -> State:
    """`base` with a task vector of this rank on some tensors."""
    model = {name: tensor.clone() for name, tensor in base.items()}
    for seed, name in enumerate(names):
        model[name] += low_rank(model[name].shape, rank, seed).to(model[name].dtype)
    return model


def near(found: State, expected: State, tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(found[n], expected[n], atol=tolerance) for n in expected)
