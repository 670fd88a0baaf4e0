"""torch's distributed checkpoints: what FSDP saves is read without running anything in it."""

from __future__ import annotations

import pickle
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import CheckpointError, MagmergeError
from tests.conftest import State, random_state, tuned
from tests.quick import examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BASE = random_state(0)
OPTIMIZER = {"state": {"0": {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def blocks(folder: Path, state: State, cuts: dict[str, list[int]], turned: bool = False) -> Path:
    """A checkpoint whose tensors are cut at rows, and if they are matrices at column 1 too."""
    folder.mkdir(parents=True, exist_ok=True)
    headers, places, planner = {}, {}, {}
    files = [(folder / f"__{rank}_0.distcp").open("wb") for rank in range(2)]
    for name, tensor in state.items():
        key, chunks = f"model.{name}", []
        edges = [0, *cuts.get(name, []), tensor.shape[0]]
        sides = [0, 1, tensor.shape[1]] if tensor.ndim == 2 else [0, 0]
        for start, stop in pairwise(edges):
            for left, right in pairwise(sides):
                part = tensor[start:stop, left:right] if tensor.ndim == 2 else tensor[start:stop]
                offsets = (start, left, 0, 0)[: tensor.ndim]
                part = part.t().contiguous().t() if turned and part.ndim == 2 else part.clone()
                file = files[len(places) % 2]
                begin = file.tell()
                torch.save(part, file)
                index = MetadataIndex(key, torch.Size(offsets))
                name_of = Path(file.name).name
                places[index] = _StorageInfo(name_of, begin, file.tell() - begin)
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), part.shape))
        properties = TensorProperties(dtype=tensor.dtype)
        headers[key] = TensorStorageMetadata(properties, tensor.shape, chunks)
        planner[key] = ("model", name)
    for file in files:
        file.close()
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(headers, planner, places)))
    return folder


@pytest.mark.parametrize(
    ("place", "wrap"),
    [
        ("run", lambda state: {"model": state, "optimizer": OPTIMIZER, "step": 3}),
        ("run", lambda state: {"app": {"model": state, "optim": OPTIMIZER}}),
        ("run/pytorch_model_fsdp_0", lambda state: {"model": state}),
        ("run", lambda state: state),
        ("run/checkpoint-7/pytorch_model_fsdp_0", lambda state: {"model": state}),
    ],
    ids=["trainer", "app", "accelerate", "bare", "training's folder"],
)
def test_what_torch_saves_is_merged(tmp_path: Path, place: str, wrap: Any) -> None:
    expert = tuned(BASE, 1)
    dcp.save(wrap(expert), checkpoint_id=str(tmp_path / place))
    read = open_checkpoint(tmp_path / "run")
    assert set(read.specs) == set(BASE)
    if not read.notes:
        result = magmerge.merge(base=BASE, experts=[tmp_path / "run"], params={"lambda": 1})
        for name, tensor in result.state_dict().items():
            assert torch.allclose(tensor, expert[name], atol=1e-6)
    assert all(torch.equal(read.read(name), expert[name]) for name in BASE)


@pytest.mark.parametrize("turned", [False, True])
def test_blocks_are_put_together(tmp_path: Path, turned: bool) -> None:
    cuts = {name: [1] if tensor.shape[0] > 1 else [] for name, tensor in BASE.items()}
    read = open_checkpoint(blocks(tmp_path / "m", BASE, cuts, turned))
    assert len(read.files) == 3
    for name, tensor in BASE.items():
        assert torch.equal(read.read(name), tensor)
        flat = tensor.reshape(-1)
        for start, stop in ((0, 1), (1, len(flat) - 1), (len(flat) // 3, len(flat) // 2)):
            assert torch.equal(read.read_part(name, start, stop), flat[start:stop])
            out = torch.empty(stop - start)
            assert torch.equal(read.read_part(name, start, stop, out), flat[start:stop])


def test_what_is_no_whole_is_refused(tmp_path: Path) -> None:
    folder = blocks(tmp_path / "m", BASE, {})
    held = pickle.loads((folder / ".metadata").read_bytes())
    name = next(iter(held.state_dict_metadata))

    def change(function: Any) -> CheckpointError:
        other = pickle.loads((folder / ".metadata").read_bytes())
        function(other)
        (tmp_path / "n").mkdir(exist_ok=True)
        for file in folder.glob("*.distcp"):
            (tmp_path / "n" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "n" / ".metadata").write_bytes(pickle.dumps(other))
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path / "n").read(name.removeprefix("model."))
        return caught.value

    header = lambda other: other.state_dict_metadata[name]  # noqa: E731
    place = lambda other: next(v for k, v in other.storage_data.items() if k.fqn == name)  # noqa: E731
    hole = change(lambda other: header(other).chunks.pop())
    assert "not the whole of it" in hole.problem
    outside = change(lambda other: setattr(place(other), "relative_path", "../x.distcp"))
    assert "outside its folder" in outside.problem
    beyond = change(lambda other: setattr(place(other), "length", 10**9))
    assert "beyond the end" in beyond.problem
    gone = change(lambda other: setattr(place(other), "relative_path", "__9_0.distcp"))
    assert "__9_0.distcp is missing" in gone.problem
    other = change(lambda other: setattr(header(other).properties, "dtype", torch.float16))
    assert "float32" in other.problem


def test_nothing_in_it_is_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (exec, ("open('ran', 'w')",))

    folder = blocks(tmp_path / "m", BASE, {})
    (folder / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Runs()}))
    with pytest.raises(CheckpointError, match="would run code"):
        open_checkpoint(folder)


def test_its_parts_are_no_models_and_averages_are_told(tmp_path: Path) -> None:
    folder = blocks(tmp_path / "m", BASE, {})
    with pytest.raises(CheckpointError, match="one part of a distributed") as caught:
        open_checkpoint(folder / "__0_0.distcp")
    assert str(folder) in (caught.value.remedy or "")
    other = tuned(BASE, 1)
    dcp.save({"model": BASE, "ema": other}, checkpoint_id=str(tmp_path / "both"))
    name = next(iter(BASE))
    for weights, state in ((None, other), ("ema", other), ("model", BASE)):
        read = open_checkpoint(tmp_path / "both", weights)
        assert torch.equal(read.read(name), state[name])
        assert "beside the raw ones" in read.notes[0]
    dcp.save({"one": BASE, "two": other}, checkpoint_id=str(tmp_path / "two"))
    with pytest.raises(CheckpointError, match="which of these is the model is not known: one, two"):
        open_checkpoint(tmp_path / "two")


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_whatever_bytes_there_are_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("m") / "m"
    blocks(folder, {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(3)}, {"a.weight": [2]})
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    file.write_bytes(bytes(content[:end]))
    with suppress(MagmergeError):
        read = open_checkpoint(folder)
        for name in read.specs:
            read.read(name)
