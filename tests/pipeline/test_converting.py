"""convert() of whole models: pickled objects to safetensors, and CLIP's names to each other's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core import dtypes
from magmerge.core.errors import (
    CheckpointError,
    NonFiniteError,
    OutputError,
    ParameterError,
    UnknownNameError,
)
from magmerge.pipeline.convert import ModelConversion
from tests.clip_files import clips
from tests.conftest import CommandLine, random_state
from tests.engine.adapters.test_conducting import peft_folder

__all__ = ["clips"]


@pytest.fixture
def cli(magmerge_cli: CommandLine) -> CommandLine:
    return magmerge_cli


def test_a_pickled_module_becomes_safetensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False))
    module[1].weight = module[0].weight
    torch.save(module, tmp_path / "m.pt")
    done = magmerge.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert isinstance(done, ModelConversion)
    assert (done.holds, done.tensors) == ("torch.nn.modules.container.Sequential", 2)
    found = load_file(tmp_path / "m.safetensors")
    # Both names of a tied tensor are written.
    assert found["0.weight"].equal(module[0].weight)
    assert found["1.weight"].equal(module[0].weight)


def test_a_folder_gets_the_file_and_the_config(tmp_path: Path, save) -> None:
    source = save("m", random_state(0))
    magmerge.convert(source, tmp_path / "out", dtype="bfloat16")
    assert {"model.safetensors", "config.json"} <= set(os.listdir(tmp_path / "out"))
    found = magmerge.open_checkpoint(tmp_path / "out")
    assert {spec.dtype for spec in found.specs.values()} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_every_dtype_and_large_tensors_are_kept(tmp_path: Path) -> None:
    state = {"large": torch.randn(3, 2_000_000), "turned": torch.randn(4, 5).t()}
    state |= {"empty": torch.zeros(0, 3), "number": torch.ones(()), "count": torch.arange(4)}
    state |= {"mask": torch.tensor([float("-inf"), 0.0])}
    torch.save(state, tmp_path / "m.pt")
    magmerge.convert(tmp_path / "m.pt", tmp_path / "m.safetensors", dtype="float32")
    found = load_file(tmp_path / "m.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in state.items())


@pytest.mark.parametrize("code", sorted(dtypes._TORCH_NAMES))
def test_every_code_is_written_bit_for_bit(tmp_path: Path, code: str) -> None:
    # Any bytes are numbers of any dtype but bool, NaN and infinity among them.
    given = torch.arange(64, dtype=torch.uint8).repeat(4)
    tensor = (given % 2).bool() if code == "BOOL" else (given * 5).view(dtypes.torch_dtype(code))
    torch.save({"a": tensor}, tmp_path / "m.pt")
    magmerge.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")["a"]
    assert found.dtype == tensor.dtype
    assert found.view(torch.uint8).equal(tensor.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_a_dtype_that_safetensors_lacks_is_named(tmp_path: Path, dtype: str) -> None:
    tensor = torch.zeros(16, dtype=torch.uint8).view(getattr(torch, dtype))
    torch.save({"a": tensor}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"torch.{dtype} cannot be stored in safetensors"):
        magmerge.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")


def test_nothing_is_left_where_it_fails(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.full((2,), 1e30)}, tmp_path / "m.safetensors")
    with pytest.raises(NonFiniteError, match="too large for float16"):
        magmerge.convert(tmp_path / "m.safetensors", tmp_path / "n.safetensors", dtype="float16")
    assert os.listdir(tmp_path) == ["m.safetensors"]
    with pytest.raises(OutputError, match="is the input"):
        magmerge.convert(tmp_path / "m.safetensors", tmp_path / "m.safetensors", overwrite=True)
    (tmp_path / "n.safetensors").write_bytes(b"x")
    with pytest.raises(OutputError, match="exists already"):
        magmerge.convert(tmp_path / "m.safetensors", tmp_path / "n.safetensors")
    magmerge.convert(tmp_path / "m.safetensors", tmp_path / "n.safetensors", overwrite=True)
    assert load_file(tmp_path / "n.safetensors")["a"].equal(torch.ones(3))


def test_mistakes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "m.safetensors")
    out = tmp_path / "n.safetensors"
    with pytest.raises(UnknownNameError, match="hf_klip"):
        magmerge.convert(tmp_path / "m.safetensors", out, naming="hf_klip")
    with pytest.raises(CheckpointError, match="not those of a CLIP model"):
        magmerge.convert(tmp_path / "m.safetensors", out, naming="hf_clip")
    with pytest.raises(ParameterError, match="adapter, and no naming"):
        magmerge.convert(peft_folder(tmp_path / "a", 0), out)
    torch.save({"bad\ud800": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="cannot be a tensor's name"):
        magmerge.convert(tmp_path / "m.pt", out)
    assert not out.exists()


def test_the_command_tells_what_was_read(cli, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    found = cli("convert", clips / "encoder0.pt", out, "--format", "timm_clip")
    assert found.code == 0, found.err
    told = " ".join(found.out.split())
    assert "src.modeling.ImageEncoder" in told
    assert "passed over, as names only: torchvision.transforms.transforms.Compose" in told
    assert "left out, timm has the vision half only: model.positional_embedding" in told
    assert "open_clip to timm_clip" in told
    again = cli("convert", clips / "encoder0.pt", tmp_path / "folder", "--json")
    assert again.json["holds"] == "src.modeling.ImageEncoder"
    assert again.json["after"] == "open_clip"
    wanted = load_file(clips / "encoder0.wanted.safetensors")
    stored = load_file(tmp_path / "folder" / "model.safetensors")
    assert set(stored) == set(wanted)
    assert all(stored[name].equal(tensor) for name, tensor in wanted.items())


def test_the_command_refuses_a_hostile_file_by_name(cli, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.")
    found = cli("convert", tmp_path / "m.pt", tmp_path / "out.safetensors")
    assert found.code == 1
    assert "reading it would run code: os.system" in " ".join(found.err.split())
    assert not (tmp_path / "out.safetensors").exists()
