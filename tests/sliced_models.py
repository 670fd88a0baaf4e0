"""Tiny models of transformers with several blocks, and what slices of them are by plain copying."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from magmerge.core.stacks import block_of
from tests.architectures import ARCHITECTURES, MORE

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers",
          "decoder_layers")  # fmt: skip
OPTIONS = dict([*ARCHITECTURES, *MORE])

State = Mapping[str, Tensor]
Run = tuple[State, int, int]
"""Blocks from the first to before the last of a model."""


def with_blocks(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The options of a config with so many blocks in each stack."""
    inner = {k: with_blocks(v, count) for k, v in options.items() if isinstance(v, dict)}
    return {**options, **inner, **{key: count for key in COUNTS if key in options}}


def save(kind: str, folder: Path, options: Mapping[str, Any], seed: int) -> State:
    """A random model of a class of transformers, as its folder has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = getattr(transformers, kind)
    built = model(model.config_class(**options))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    built.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def load(kind: str, folder: Path) -> Any:
    """The model as transformers loads it: nothing missing, nothing unexpected; it runs."""
    transformers = pytest.importorskip("transformers")
    model, told = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    from magmerge.live.dummy_inputs import inputs_for

    inputs = inputs_for(model)
    assert inputs is not None
    with torch.no_grad():
        model.eval()(**inputs)
    return model


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def stacked(stack: str, runs: Sequence[Run], pinned: Sequence[str] = ()) -> dict[str, Tensor]:
    """The blocks of a stack by plain copying; tensors with `pinned` in their names stay out."""
    blocks = [(state, number) for state, start, stop in runs for number in range(start, stop)]
    result = {}
    for place, (state, number) in enumerate(blocks):
        for name, tensor in state.items():
            block = block_of(name)
            if block is None or (block.stack, block.number) != (stack, number):
                continue
            if not any(word in name for word in pinned):
                result[".".join(filter(None, (stack, str(place), block.inner)))] = tensor
    return result


def same(merged: State, wish: State) -> None:
    """Bit for bit; all of `wish` is there."""
    for name, tensor in wish.items():
        assert merged[name].equal(tensor), name
