"""Random adapters as files, for tests that are about their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.nouns import Content, LowRank

Factors = Mapping[str, LowRank]
Shapes = Mapping[str, tuple[int, ...]]


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


def folder_of(path: Path, factors: Factors) -> Path:
    """A folder for PEFT that holds these factors."""
    path.mkdir()
    kinds = {n: "linear" if f.down.ndim == 2 else "convolution" for n, f in factors.items()}
    file = encode(Content("peft", factors, kinds))[""]  # type: ignore[arg-type]
    save_file(file.tensors, path / "adapter_model.safetensors", metadata=file.metadata)
    for name, text in file.beside.items():
        (path / name).write_text(text)
    return path


def full(factor: LowRank) -> Tensor:
    """The task vector as a matrix of flat rows, in float64."""
    return factor.scale * (factor.up.double() @ factor.down.double().flatten(1))
