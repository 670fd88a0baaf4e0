"""Which models give the stored bytes of a tensor, and that they are the tensor's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.experts import FullExpert, same_tensor
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.output.writer import stored_bytes
from magmerge.checkpoints.views import CheckpointView, Stretch, under_names, whole
from magmerge.core.models import as_stored
from magmerge.core.types import TensorSpec
from tests.conftest import State


def test_a_view_gives_the_bytes_of_what_it_only_renames(folders: list[Path], base: State) -> None:
    stored = magmerge.open_checkpoint(folders[0])
    name = "layers.0.attn.weight"
    view = under_names(under_names(stored, {"a": name}), {"b": "a"})
    expert = FullExpert("e", view)
    for model in (view, expert):
        source = as_stored(model, "b")
        assert source is not None
        data = np.zeros(20 * 4, np.uint8)
        source.read_bytes("b", 7, 27, data)
        assert np.array_equal(data, stored_bytes(base[name])[28:108])


def test_what_is_put_together_or_in_memory_has_no_bytes_of_its_own(
    folders: list[Path], base: State
) -> None:
    stored = magmerge.open_checkpoint(folders[0])
    spec = stored.specs["layers.0.attn.weight"]
    half = TensorSpec("half", (12, 24), "F32")
    view = CheckpointView(
        stored,
        {"half": half, "all": spec},
        {"half": [Stretch(spec.name, 0, 288)], "all": whole(spec)},
    )
    assert as_stored(view, "half") is None
    assert as_stored(view, "all") is not None
    assert as_stored(MemoryCheckpoint(base), spec.name) is None
    assert as_stored(FullExpert("e", MemoryCheckpoint(base)), spec.name) is None
    assert as_stored(None, spec.name) is None


def test_tensors_are_the_same_by_their_values_from_files_and_memory(tmp_path: Path) -> None:
    """Of one format or two; zeros of both signs are the same, and NaN is nothing's like."""
    one = {
        "x": torch.tensor([0.0, 1.5, -2.0]),
        "n": torch.tensor([float("nan")]),
        "i": torch.arange(4),
    }
    two = {
        "x": torch.tensor([-0.0, 1.5, -2.0]).bfloat16(),
        "n": one["n"],
        "i": torch.arange(4).int(),
    }
    other = {**two, "x": torch.tensor([0.0, 1.5, -2.25]), "i": torch.arange(1, 5)}
    models = []
    for number, state in enumerate((one, two, other)):
        save_file(state, tmp_path / f"{number}.safetensors")
        file = magmerge.open_checkpoint(tmp_path / f"{number}.safetensors")
        models.append((file, MemoryCheckpoint(state)))
    for first in models[0]:
        for second in models[1]:
            assert same_tensor(first, second, "x")
            assert same_tensor(first, second, "i")
            assert not same_tensor(first, second, "n")
        for third in models[2]:
            assert not same_tensor(first, third, "x")
            assert not same_tensor(first, third, "i")
