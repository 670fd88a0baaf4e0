from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import magmerge
from magmerge.core.errors import CheckpointError, MagmergeError
from tests.conftest import random_state
from tests.quick import examples


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_a_state_dict_in_both_formats(tmp_path: Path, zipped: bool) -> None:
    state = random_state(1)
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    checkpoint = magmerge.open_checkpoint(tmp_path / "m.bin")
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


def test_finds_the_state_in_a_training_checkpoint(tmp_path: Path) -> None:
    state = random_state(1)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "m.ckpt")
    assert set(magmerge.open_checkpoint(tmp_path / "m.ckpt").specs) == set(state)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_ever_run(tmp_path: Path, zipped: bool) -> None:
    mark, file = tmp_path / "mark", tmp_path / "m.bin"
    torch.save({"a": Hostile(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="would run code"):
        magmerge.open_checkpoint(file)
    assert not mark.exists()


def test_a_plain_pickle_is_refused_unread(tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "m.pt"
    file.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        magmerge.open_checkpoint(file)
    assert not mark.exists()


def test_a_whole_pickled_module_is_read_by_every_verb(tmp_path: Path) -> None:
    modules = [torch.nn.Linear(2, 2) for _ in range(3)]
    for number, module in enumerate(modules):
        torch.save(module, tmp_path / f"m{number}.pt")
    files = [tmp_path / f"m{number}.pt" for number in range(3)]
    checkpoint = magmerge.open_checkpoint(files[0])
    assert checkpoint.read("weight").equal(modules[0].weight)
    merged = magmerge.merge(base=files[0], experts=files[1:], method="average").state_dict()
    wanted = (modules[1].bias + modules[2].bias) / 2
    assert torch.allclose(merged["bias"], wanted.detach())
    assert [one.name for one in magmerge.inspect(files[0]).tensors] == ["weight", "bias"]


@pytest.mark.parametrize("content", [[1, 2], {"a": 1, "b": torch.ones(1)}, {}, "text"])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="refused"):
        magmerge.open_checkpoint(tmp_path / "m.pt")


def test_shared_tensors_are_known_as_such(tmp_path: Path) -> None:
    shared: Tensor = torch.ones(3, 2)
    torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / "m.bin")
    assert magmerge.open_checkpoint(tmp_path / "m.bin").ties == {"head.weight": "embed.weight"}


@settings(
    deadline=None,
    max_examples=examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzz_a_damaged_file_is_read_or_refused_never_worse(
    tmp_path: Path, data: st.DataObject
) -> None:
    file = tmp_path / "m.bin"
    zipped = data.draw(st.booleans())
    torch.save({"a": torch.ones(2, 3)}, file, _use_new_zipfile_serialization=zipped)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    try:
        checkpoint = magmerge.open_checkpoint(file)
        for name in checkpoint.specs:
            checkpoint.read(name)
    except MagmergeError as error:
        assert "remedy" in str(error)
