"""Honest files give the very tensors that torch.load and state_dict() give."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

import magmerge
from magmerge.checkpoints.pickles.torch_pickle import load_file
from tests.checkpoints.pickles import load_tensors
from tests.clip_files import clips

__all__ = ["clips"]

DTYPES = [
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
    "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


class Odd(nn.Module):
    """Tied, half, empty, non-persistent, nested and absent tensors, and things that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(5, 6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.first.weight
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 2).half(), nn.BatchNorm2d(4), nn.LSTM(3, 4))
        self.attention = nn.MultiheadAttention(8, 2).bfloat16()
        self.listed = nn.ParameterList([torch.ones(2), torch.zeros(0, 3)])
        self.same = self.inner[1]
        self.turned = nn.Parameter(torch.randn(3, 2).t())
        self.register_buffer("positions", torch.arange(4).expand(1, -1))
        self.register_buffer("mask", torch.ones(2, 2), persistent=False)
        self.register_buffer("absent", None)
        self.told = nn.Buffer(torch.ones(2))
        self.notes = {"set": {1, "a"}, "path": Path("x"), "numbers": np.arange(3)}


def check_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bit for bit, names in the same order."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        other = found[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert other.contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8)) \
            if tensor.ndim else other.equal(tensor), name  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_its_state_dict(tmp_path: Path, protocol: int, zipped: bool) -> None:
    file, module = tmp_path / "m.pt", Odd()
    torch.save(module, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = load_file(file)
    check_equal(dict(found.tensors), module.state_dict())
    check_equal(dict(found.tensors), torch.load(file, weights_only=False).state_dict())
    assert found.holds == f"{Odd.__module__}.Odd"
    checkpoint = magmerge.open_checkpoint(file)
    assert checkpoint.ties["head.weight"] == "first.weight"
    assert checkpoint.ties["same.weight"] == "inner.1.weight"


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_modules_states_and_arrays(tmp_path: Path, protocol: int) -> None:
    file, module = tmp_path / "m.pt", Odd()
    numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"rows": numbers, "columns": np.asfortranarray(numbers), "number": np.float64(3),
              "turned": numbers.transpose(2, 0, 1), "half": numbers.astype(np.float16)}  # fmt: skip
    wanted = {name: torch.as_tensor(array) for name, array in arrays.items()}
    for held, state in ((module, module.state_dict()), (module.state_dict(), module.state_dict()),
                        (arrays, wanted)):  # fmt: skip
        file.write_bytes(pickle.dumps(held, protocol=protocol))
        check_equal(load_tensors(file), state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path: Path, dtype: str, zipped: bool) -> None:
    state = {"a": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)), "b": torch.ones(1)}
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    check_equal(load_tensors(tmp_path / "m.pt"), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_one_storage_stay_views(tmp_path: Path, zipped: bool) -> None:
    whole = torch.randn(6, 8)
    state = OrderedDict(whole=whole, turned=whole.t(), part=whole[2:4, 1::3], row=whole[5],
                        again=whole, none=whole[:0], wide=torch.ones(1).expand(7))  # fmt: skip
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    found = load_tensors(tmp_path / "m.pt")
    check_equal(found, state)
    assert found["part"].untyped_storage().data_ptr() == found["whole"].data_ptr()
    assert magmerge.open_checkpoint(tmp_path / "m.pt").ties == {"again": "whole"}


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net"])
def test_the_model_may_be_under_a_key(tmp_path: Path, key: str) -> None:
    module, file = Odd(), tmp_path / "m.pt"
    optimizer = torch.optim.AdamW(module.parameters())
    rest = {"epoch": 3, "optimizer": optimizer.state_dict(), "args": {"lr": 1e-3}}
    for held in (module, module.state_dict(), {"state_dict": module.state_dict()}):
        torch.save({**rest, key: held}, file)
        check_equal(load_tensors(file), module.state_dict())


def test_a_large_file_is_mapped_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.pt"
    torch.save({f"layer{i}": torch.full((4_000_000,), float(i)) for i in range(4)}, file)
    before = _resident()
    found = load_tensors(file)
    assert _resident() - before < 8e6
    assert float(found["layer3"][-1]) == 3
    assert str(file) in Path("/proc/self/maps").read_text()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("kind", ["", ".legacy", ".half"])
def test_a_published_image_encoder_is_its_state_dict(clips: Path, kind: str) -> None:
    found = load_file(clips / f"encoder0{kind}.pt")
    wanted = load_safetensors(clips / f"encoder0{kind.replace('.legacy', '')}.wanted.safetensors")
    dtype = torch.float16 if kind == ".half" else torch.float32
    assert set(found.tensors) == set(wanted)
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == dtype
        assert found.tensors[name].float().equal(tensor)
    assert found.holds == "src.modeling.ImageEncoder"
    assert {"functools.partial", "torchvision.transforms.transforms.Compose"} <= set(found.passed)


def test_a_whole_open_clip_model_has_the_order_of_its_state_dict(clips: Path) -> None:
    check_equal(load_tensors(clips / "clip0.pt"), load_tensors(clips / "clip0.state.pt"))
