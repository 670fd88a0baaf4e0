from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import magmerge
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.core.errors import CheckpointError


def test_a_mapping_is_a_checkpoint(base: dict) -> None:
    checkpoint = magmerge.open_checkpoint(base)
    assert list(checkpoint.specs) == list(base)
    assert torch.equal(checkpoint.read("lm_head.weight"), base["lm_head.weight"])


def test_a_module_tells_kinds_and_ties() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "out": nn.Linear(3, 5), "c": Conv1D(4, 3)})
    model["out"].weight = model["table"].weight
    checkpoint = magmerge.open_checkpoint(model)
    assert checkpoint.kinds == {"table.weight": "embedding", "c.weight": "transposed"}
    assert checkpoint.ties == {"out.weight": "table.weight"}


def test_views_of_one_storage_are_no_ties() -> None:
    storage = torch.arange(6.0)
    assert not magmerge.open_checkpoint({"a": storage[:3], "b": storage[3:]}).ties


def test_a_strided_view_is_read_contiguously() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    found = magmerge.open_checkpoint({"a": tensor}).read("a")
    assert found.is_contiguous()
    assert torch.equal(found, tensor)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(CheckpointError, match="sparse"):
        magmerge.open_checkpoint({"a": torch.eye(3).to_sparse()})
    with pytest.raises(CheckpointError, match="is no model"):
        magmerge.open_checkpoint(3)


def test_any_part_of_a_turned_view_is_as_of_a_copy() -> None:
    turned = torch.randn(7, 5, 3).transpose(0, 1)
    checkpoint = MemoryCheckpoint({"a": turned})
    flat = turned.contiguous().reshape(-1)
    for start in range(0, 105, 4):
        for stop in range(start, 106, 7):
            assert torch.equal(checkpoint.read_part("a", start, stop), flat[start:stop])
