"""Adapters for the tests: random ones in memory, written to files, and their task vectors."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.nouns import Adapter, Content, LowRank
from tests.checkpoints.adapters.module_names import Shapes

Deltas = dict[str, Tensor]


def random_content(shapes: Shapes, seed: int = 0) -> Content:
    """Under diffusers' names; ranks and scales vary, and alpha is not the rank."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for number, (name, shape) in enumerate(shapes.items()):
        rank, scale = 1 + number % 3, (0.3, 1.0, 2.5)[number % 3]
        up = torch.randn(shape[0], rank, generator=generator)
        down = torch.randn(rank, *shape[1:], generator=generator)
        modules[name] = LowRank(up, down, scale)
    kinds = {n: "linear" if len(shape) == 2 else "convolution" for n, shape in shapes.items()}
    return Content("diffusers", modules, kinds)  # type: ignore[arg-type]


def delta(factors: LowRank) -> Tensor:
    """The task vector in float64, by the definition."""
    up, down = factors.up.double(), factors.down.double()
    return factors.scale * torch.einsum("or,r...->o...", up, down)


def deltas_of(content: Content) -> Deltas:
    return {name: delta(factors) for name, factors in content.modules.items()}


def read_deltas(adapter: Adapter) -> Deltas:
    found = {}
    for name, spec in adapter.modules.items():
        factors = adapter.read(name)
        assert factors.up.shape == (spec.shape[0], spec.rank)
        assert factors.down.shape == (spec.rank, *spec.shape[1:])
        assert factors.scale == spec.scale
        found[name] = delta(factors)
    return found


def same(found: Deltas, expected: Deltas, tolerance: float = 1e-6) -> bool:
    """Whether the same modules have the same task vectors, each relative to its norm."""
    return set(found) == set(expected) and all(
        found[name].shape == wanted.shape
        and float((found[name] - wanted).norm()) <= tolerance * float(wanted.norm())
        for name, wanted in expected.items()
    )


def content_of(adapter: Adapter) -> Content:
    return Content(
        adapter.naming,
        {name: adapter.read(name) for name in adapter.modules},
        {name: spec.kind for name, spec in adapter.modules.items()},
        {name: whole_tensor(adapter, name) for name in adapter.whole},
        adapter.metadata,
        adapter.config,
    )


def write(content: Content, path: Path) -> Path:
    """The files of a finished adapter: `path` is a file or, for PEFT, a folder."""
    for folder, encoded in encode(content).items():
        if content.naming != "peft":
            save_file(encoded.tensors, path, encoded.metadata)
            assert not encoded.beside
            continue
        place = path / folder if folder else path
        place.mkdir(parents=True)
        save_file(encoded.tensors, place / "adapter_model.safetensors", encoded.metadata)
        for name, text in encoded.beside.items():
            (place / name).write_text(text, encoding="utf-8")
    return path


def save(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file(state, path, metadata)
    return path


def opened(state: dict[str, Tensor], folder: Path, **metadata: str) -> Adapter:
    """The adapter of a file with these tensors, whose name says nothing."""
    return open_adapter(save(state, folder / "x.safetensors", metadata))


def whole_tensor(adapter: Adapter, name: str) -> Tensor:
    """One tensor that the adapter replaces."""
    shape = adapter.whole[name].shape
    return adapter.read_whole_part(name, 0, math.prod(shape)).reshape(shape)
