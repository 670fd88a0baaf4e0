"""A layer of every kind that features are followed through, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Case(NamedTuple):
    """How to make a layer and an input, and the axis of its output that is features."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    features: int = -1


class OnePlusNorm(nn.Module):
    """An RMS norm that scales by 1 + weight, as Gemma's does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class Table(nn.Module):
    """Positions that are added to what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


def tokens() -> Tensor:
    return torch.randn(3, 5, 6)


def maps(dimensions: int, channels: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, *[7] * dimensions)


def case(make: Callable[[], nn.Module], inputs: Callable[[], Any], features: int = -1) -> Case:
    return Case(make, inputs, features)


CASES = {
    "linear": case(lambda: nn.Linear(6, 9), tokens),
    "linear without bias": case(lambda: nn.Linear(6, 9, bias=False), tokens),
    "transposed": case(lambda: Conv1D(9, 6), tokens),
    "convolution 1d": case(lambda: nn.Conv1d(4, 6, 3, padding=1), maps(1), 1),
    "convolution 2d": case(lambda: nn.Conv2d(4, 6, 3, stride=2), maps(2), 1),
    "convolution 3d": case(lambda: nn.Conv3d(4, 6, 3), maps(3), 1),
    "grouped convolution": case(lambda: nn.Conv2d(4, 8, 3, groups=2), maps(2), 1),
    "depthwise convolution": case(lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), maps(2), 1),
    "circular convolution": case(
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), maps(2), 1
    ),
    "deconvolution": case(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), maps(2), 1),
    "grouped deconvolution": case(lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), maps(1), 1),
    "embedding": case(lambda: nn.Embedding(11, 6), lambda: torch.randint(0, 11, (3, 5))),
    "layer norm": case(lambda: nn.LayerNorm(6), tokens),
    "rms norm": case(lambda: nn.RMSNorm(6), tokens),
    "one plus norm": case(lambda: OnePlusNorm(6), tokens),
    "group norm": case(lambda: nn.GroupNorm(2, 4), maps(2), 1),
    "batch norm": case(lambda: nn.BatchNorm2d(4), maps(2), 1),
    "table": case(Table, tokens),
}
