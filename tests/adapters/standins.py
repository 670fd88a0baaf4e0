"""Adapters in memory, for tests that are not about files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.nouns import LowRank, ModuleSpec
from magmerge.checkpoints.adapters.union import AdapterTaskVectors, AdapterUnion
from magmerge.core.models import Sources
from magmerge.core.types import Naming, TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


class Adapter:
    """Factors by module name."""

    naming: Naming = "peft"
    files: tuple[Path, ...] = ()
    whole: Mapping[str, TensorSpec] = {}
    metadata: Mapping[str, str] = {}
    config: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()

    def __init__(self, source: str, factors: Mapping[str, LowRank]) -> None:
        self.source = source
        self._factors = dict(factors)
        self.modules = {
            name: ModuleSpec(
                name,
                "linear" if one.down.ndim == 2 else "convolution",
                (one.up.shape[0], *one.down.shape[1:]),
                one.up.shape[1],
                one.scale,
                "F32",
            )
            for name, one in factors.items()
        }

    def read(self, module: str) -> LowRank:
        return self._factors[module]

    def read_whole(self, name: str) -> Tensor:
        raise KeyError(name)

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        raise KeyError(name)


def factors_of(shapes: Shapes, rank: int, seed: int, scale: float = 0.5) -> dict[str, LowRank]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(shape[0], rank, generator=draw),
            torch.randn(rank, *shape[1:], generator=draw),
            scale,
        )
        for name, shape in shapes.items()
    }


def sources_of(*adapters: Adapter) -> Sources:
    union = AdapterUnion(adapters, "peft")
    experts = [AdapterTaskVectors(one.source, one, union) for one in adapters]
    return Sources(union, union, experts, None)


def full(factor: LowRank) -> Tensor:
    """The task vector as a matrix of flat rows, in float64."""
    return factor.scale * (factor.up.double() @ factor.down.double().flatten(1))
