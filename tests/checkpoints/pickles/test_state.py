"""What holds no plain tensors, told by name."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors


class Own(OrderedDict):
    """A mapping of a class of its own."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"w": torch.ones(3).to_sparse()}, r"w \(a sparse tensor\)"),
        ({"w": torch.ones(2, 2).to_sparse_csr()}, r"w \(a sparse tensor\)"),
        ({"w": torch.ones(2, device="meta")}, r"w \(a tensor without data\)"),
        (
            {"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
            r"w \(a quantised tensor\)",
        ),
        ({"w": torch.ones(2), "x": np.array(["a"], dtype=object)}, "array of other things"),
        ({"w": np.ones(2, ">f4")}, "big-endian"),
        ({"w": torch.nn.functional.gelu}, "w .the name torch"),
        ({(1, 2): 3}, "a tuple .a int"),
        (torch.ones(2), "holds a lone tensor"),
        (nn.ReLU(), "has no tensors"),
        (
            {"w": torch.ones(2, dtype=torch.uint8).view(torch.float8_e8m0fnu)},
            r"w \(a tensor of torch\.float8_e8m0fnu, which is not read\)",
        ),
    ],
)
def test_it_is_refused_by_name(tmp_path: Path, zipped: bool, held: object, words: str) -> None:
    torch.save(held, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=words):
        load_tensors(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_not_collected_may_be_anything(tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    sparse = torch.ones(3).to_sparse()
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save(
        {"model": state, "optimizer": {0: sparse, 1: quantised, (1, 2): 3j}}, tmp_path / "m.pt"
    )
    assert list(load_tensors(tmp_path / "m.pt")) == ["w"]


def test_a_module_with_a_sparse_parameter_names_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_buffer("graph", torch.eye(2).to_sparse())
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"0\.graph is a sparse tensor"):
        load_tensors(tmp_path / "m.pt")


def test_a_mapping_of_a_class_of_its_own_is_a_state_dict(tmp_path: Path) -> None:
    torch.save(Own(a=torch.ones(2), b=torch.zeros(1)), tmp_path / "m.pt")
    assert list(load_tensors(tmp_path / "m.pt")) == ["a", "b"]


def test_wrapped_and_frozen_modules_keep_their_names(tmp_path: Path) -> None:
    module = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.ParameterDict({"a": torch.ones(1)})))
    module.module[0].weight.requires_grad_(False)
    torch.save(module, tmp_path / "m.pt")
    assert list(load_tensors(tmp_path / "m.pt")) == list(module.state_dict())
