"""A few bytes that ask for any amount: refused soon, and with little memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from magmerge.checkpoints.pickles.limits import Budget, RefusedError
from magmerge.checkpoints.pickles.opcodes import PickleMachine
from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors
from tests.checkpoints.pickles.bombs import BOMBS, PROTO
from tests.quick import quick_ones

LONG = {
    "numbers of objects without end", "sets made again and again", "one tensor under many names",
    "a codec of a million letters", "marks without end", "names that are long together",
    "a dtype of a million letters", "mappings without end",
    "parameters that are none in many", "arguments copied by a class",
    "arguments copied by a reconstructor", "arguments looked through",
}  # fmt: skip
"""Bombs that take a second or more; another of their kind is tried in the quick tests."""


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what reading each bomb cost."""
    folder = tmp_path_factory.mktemp("bombs")
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if getattr(item, "originalname", "") == test_a_bomb_is_refused_at_once.__name__
    ]
    subprocess.run([sys.executable, "-m", "tests.checkpoints.pickles.bombs", str(folder), *names],
                   check=True, timeout=300, cwd=Path(__file__).parents[3])  # fmt: skip
    return folder


@pytest.mark.parametrize("name", quick_ones(BOMBS, lambda name: name not in LONG))
def test_a_bomb_is_refused_at_once(measured: Path, name: str) -> None:
    found = json.loads((measured / f"{name}.json").read_text())
    assert "refused" in found["told"]
    assert len(found["told"]) < 2000
    assert found["seconds"] < 8
    assert found["grown"] < 700e6


def test_pickles_within_pickles_end_somewhere(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(torch.ones(2).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for _ in range(5):
        inner = b"\x8e" + struct.pack("<Q", len(content)) + content
        content = magic + PROTO + b"ctorch.storage\n_load_from_bytes\n" + inner + b"\x85R."
        content += pickle.dumps([], 2)
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="pickles within pickles"):
        load_tensors(tmp_path / "m.pt")


def test_modules_in_themselves_are_refused(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    module._modules["again"] = module
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="without end"):
        load_tensors(tmp_path / "m.pt")


def test_modules_with_2_to_the_80_names_are_refused(tmp_path: Path) -> None:
    module: nn.Module = nn.Identity()
    for _ in range(80):
        outer = nn.Module()
        outer._modules = {"a": module, "b": module}
        module = outer
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="without end"):
        load_tensors(tmp_path / "m.pt")


def test_what_is_left_is_counted() -> None:
    budget = Budget(10)
    budget.make(entries=10)
    with pytest.raises(RefusedError, match="more than 1,000,000 objects"):
        budget.make(entries=10**8)
    with pytest.raises(RefusedError, match="more than 10,000,000 opcodes"):
        budget.step()
    with pytest.raises(RefusedError, match="grows without limit"):
        budget.convert(10**6)


def test_atoms_and_containers_come_out_as_pickle_makes_them() -> None:
    held = [1, -1, 2**40, True, None, 1.5, "ä", b"\x00\xff", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4),
            {"a": [1, {2: ()}]}, {1, "b"}, frozenset({3})]  # fmt: skip
    held.append(held[-3])
    for protocol in range(6):
        content = pickle.dumps(held, protocol=protocol)
        found = PickleMachine(io.BytesIO(content), Budget(len(content)), lambda _: None).load()
        assert found[:13] == held[:13]
        assert set(found[13]) == held[13]
        assert set(found[14]) == held[14]
        assert found[15] is found[12 if held[-1] is held[12] else 13]
