"""A module with any names and shapes of weights, so that every merge of them can be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.core import registry


class Bank(nn.Module):
    """Each weight is a layer of its own, fed with waves of the input; their sums are the output."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._paths = []
        for name, tensor in state.items():
            path = name.rpartition(".")[0]
            parent: nn.Module = self
            for part in path.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(path.rpartition(".")[2], _layer(path, tuple(tensor.shape)))
            self._paths.append((path, tuple(tensor.shape)))

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum()
        for path, shape in self._paths:
            total = total + self.get_submodule(path)(_fed(path, shape, x)).mean()
        return total.reshape(1, 1)


def _layer(path: str, shape: tuple[int, ...]) -> nn.Module:
    if "embed" in path:
        return nn.Embedding(*shape)
    if len(shape) == 1:
        return nn.LayerNorm(shape, bias=False)
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False)
    kinds = {3: nn.Conv1d, 4: nn.Conv2d}
    return kinds[len(shape)](shape[1], shape[0], shape[2:], bias=False)


def _fed(path: str, shape: tuple[int, ...], x: Tensor) -> Tensor:
    if "embed" in path:
        return (x.reshape(-1).abs() * 1000).long() % shape[0]
    size = shape[-1:] if len(shape) < 3 else shape[1:]
    waves = torch.arange(math.prod(size))
    return torch.sin(x.reshape(-1, 1) * (1 + waves)).reshape(-1, *size)


def inputs_for(calibrator: str | None, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What merge() needs besides for this calibrator."""
    if calibrator is None or registry.calibrators.get(calibrator).needs == "weights":
        return {}
    return {"model": Bank(state), "data": torch.linspace(0.1, 2.0, 6).reshape(6, 1)}
