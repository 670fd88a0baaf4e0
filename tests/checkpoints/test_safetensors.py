from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.output.writer import stored_bytes
from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.core.models import as_stored
from tests.conftest import State, random_state
from tests.quick import examples


def test_reads_every_dtype_and_shape_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, 2).half(),
        "bf16": torch.randn(3, 2).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "int": torch.arange(5),
        "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }
    save_file(state, tmp_path / "m.safetensors")
    checkpoint = magmerge.open_checkpoint(tmp_path / "m.safetensors")
    assert set(checkpoint.specs) == set(state)
    for name, tensor in state.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        stored, size = as_stored(checkpoint, name), tensor.element_size()
        assert stored is not None
        last = tensor.numel()
        first = min(1, last)
        data = np.zeros((last - first) * size, np.uint8)
        stored.read_bytes(name, first, last, data)
        assert np.array_equal(data, stored_bytes(tensor)[first * size :])


def sharded(folder: Path, state: State) -> Path:
    """The state in two shards with an index."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: state[n] for n in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def edit_index(folder: Path, name: str, file: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))


def test_reads_shards_by_their_index(tmp_path: Path) -> None:
    state = random_state(1)
    checkpoint = magmerge.open_checkpoint(sharded(tmp_path / "m", state))
    assert set(checkpoint.specs) == set(state)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


@pytest.mark.parametrize(
    "shard", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    edit_index(folder, "lm_head.weight", shard)
    with pytest.raises(CheckpointError, match="outside its folder"):
        magmerge.open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 2 shards.*model-00002-of-00002"):
        magmerge.open_checkpoint(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    edit_index(folder, "ghost.weight", "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"ghost\.weight is listed but in no shard"):
        magmerge.open_checkpoint(folder)


def test_an_index_that_sends_a_tensor_to_another_shard_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name, shard = next(iter(listed.items()))
    other = next(file for file in listed.values() if file != shard)
    edit_index(folder, name, other)
    with pytest.raises(CheckpointError, match=f"is listed in {other} and is in {shard}"):
        magmerge.open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        magmerge.open_checkpoint(folder)


def test_single_file_and_index_together_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", random_state(1))
    save_file(random_state(2), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds both"):
        magmerge.open_checkpoint(folder)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    whole = tmp_path / "m.safetensors"
    save_file(random_state(1), whole)
    content = whole.read_bytes()
    for length in (0, 4, 8, 100, len(content) - 1):
        whole.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a sound safetensors file"):
            magmerge.open_checkpoint(whole)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    )
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError):
        magmerge.open_checkpoint(file)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(1000)}, file)
    checkpoint = magmerge.open_checkpoint(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="shorter while it was read"):
        checkpoint.read("a")


@settings(
    deadline=None,
    max_examples=examples(300),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzz_a_damaged_file_is_read_or_refused_never_worse(
    tmp_path: Path, data: st.DataObject
) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.ones(2, 3), "b": torch.arange(4)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        checkpoint = magmerge.open_checkpoint(file)
        for name, spec in checkpoint.specs.items():
            assert tuple(checkpoint.read(name).shape) == spec.shape
    except MagmergeError as error:
        assert str(file) in str(error)
