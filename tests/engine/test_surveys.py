"""Thresholds of a whole model cost one sweep over it and a look at a few layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge

LAYERS, SHAPE, EXPERTS = 12, (256, 300), 3


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    base: dict[str, Tensor] = {}
    files = []
    for number in range(1 + EXPERTS):
        generator = torch.Generator().manual_seed(number)
        state = {}
        for layer in range(LAYERS):
            drawn = torch.randn(SHAPE, generator=generator)
            sizes = 0.001 * (1 + layer % 3) * torch.rand((SHAPE[0], 1), generator=generator)
            name = f"layers.{layer}.weight"
            state[name] = base[name] + drawn * sizes if number else drawn * 0.02
        base = base or state
        files.append(tmp_path / f"{number}.safetensors")
        save_file({name: tensor.bfloat16() for name, tensor in state.items()}, files[-1])
    return files


def merge(models: list[Path], out: Path, **more: Any) -> dict[str, Tensor]:
    magmerge.merge(base=models[0], experts=models[1:], method="ties", out=out, **more)
    return load_file(out)


def trimmed_by_sort(models: list[Path]) -> list[dict[str, Tensor]]:
    """Each expert's 20 % largest changes in the whole model, by a stable sort in float64."""
    base, names = load_file(models[0]), sorted(load_file(models[0]))
    result = []
    for file in models[1:]:
        expert = load_file(file)
        deltas = {name: expert[name].double() - base[name].double() for name in names}
        flat = torch.cat([deltas[name].reshape(-1) for name in names])
        order = torch.sort(flat.abs(), descending=True, stable=True).indices
        mask = torch.zeros(len(flat), dtype=torch.bool)
        mask[order[: -(-len(flat) // 5)]] = True
        parts = mask.split([deltas[name].numel() for name in names])
        result.append(
            {n: deltas[n] * part.reshape(SHAPE) for n, part in zip(names, parts, strict=True)}
        )
    return result


def test_one_sweep_over_the_model_and_no_bit_depends_on_how(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: dict[str, int] = {}
    sizes: list[int] = []
    real = os.preadv

    def counted(handle: int, buffers: Any, offset: int) -> int:
        sizes.append(real(handle, buffers, offset))
        return sizes[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", counted)
        found = merge(models, tmp_path / "one.safetensors", threads=1,
                      progress=lambda label, _, total: sweeps.update({label: total}))  # fmt: skip
    assert sweeps["surveying, sweep 1"] == LAYERS
    # Where equal changes run out: a layer for each expert.
    assert sweeps.get("surveying, sweep 2", 0) <= EXPERTS
    assert "surveying, sweep 3" not in sweeps
    inputs = sum(file.stat().st_size for file in models)
    assert sum(sizes) < 2.6 * inputs
    for number, how in enumerate(({"threads": 4}, {"threads": 2, "memory": "140MB"})):
        other = merge(models, tmp_path / f"other-{number}.safetensors", **how)
        assert all(torch.equal(found[name], other[name]) for name in found)
    base, kept = load_file(models[0]), trimmed_by_sort(models)
    for name, tensor in found.items():
        parts = torch.stack([each[name] for each in kept])
        agree = parts * parts.sum(0).sign() > 0
        mean = (parts * agree).sum(0) / agree.sum(0).clamp(min=1)
        expected = (base[name].double() + mean).bfloat16()
        assert (tensor == expected).float().mean() > 0.9999
