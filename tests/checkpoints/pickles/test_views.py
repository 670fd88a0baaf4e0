"""Storages that do not begin at a multiple of their entries' width: copied once."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors
from tests.checkpoints.pickles.bombs import MAGIC, named, text, word

ENTRIES = 1000


def tensors(references: list[bytes]) -> bytes:
    """A pickle of tensors of one entry, each a view of what one of these refers to."""
    opcodes = b"\x80\x02}("
    for i, reference in enumerate(references):
        opcodes += text(b"t%d" % i) + named("torch._utils._rebuild_tensor_v2") + b"("
        opcodes += reference + b"QK\x00K\x01\x85K\x01\x85\x89NtR"
    return opcodes + b"u."


def reference(kind: str, count: int, view: bytes = b"") -> bytes:
    storage = text(b"storage") + named(f"torch.{kind}Storage") + text(b"0") + text(b"cpu")
    return b"(" + storage + b"J" + word(count) + view + b"t"


def part(name: str, first: int) -> bytes:
    return b"(" + text(name.encode()) + b"J" + word(first) + b"J" + word(ENTRIES - first) + b"t"


def legacy(held: bytes, remainder: int) -> bytes:
    """A file whose storage begins `remainder` bytes after a multiple of 4."""
    for padding in range(8):
        start = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"x" * padding: 1}, 2)
        content = start + held + pickle.dumps(["0"], 2) + struct.pack("<q", ENTRIES)
        if len(content) % 4 == remainder:
            return content + torch.arange(float(ENTRIES)).numpy().tobytes()
    raise AssertionError


@pytest.mark.parametrize("remainder", range(4))
def test_parts_of_one_storage_share_its_memory(tmp_path: Path, remainder: int) -> None:
    parts = [reference("Float", ENTRIES, part(name, first))
             for name, first in (("a", 0), ("b", 0), ("c", 7))]  # fmt: skip
    (tmp_path / "m.pt").write_bytes(legacy(tensors(parts), remainder))
    found = load_tensors(tmp_path / "m.pt")
    assert [tensor.item() for tensor in found.values()] == [0, 0, 7]
    first, second, third = (tensor.data_ptr() for tensor in found.values())
    assert (first, third - first) == (second, 28)
    assert all(address % 4 == 0 for address in (first, third))
    assert dict(MemoryCheckpoint(found).ties) == {"t1": "t0"}


def test_a_part_that_begins_within_an_entry_is_refused(tmp_path: Path) -> None:
    """A view of one byte's distance, of entries of eight: no copy of the whole would help it."""
    given = tensors([reference("Byte", ENTRIES, part("a", 1))])
    given = given.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3").replace(
        b"\x89NtR", b"\x89N" + named("torch.float64") + b"tR")  # fmt: skip
    content = legacy(given, 1)
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="begins within an entry"):
        load_tensors(tmp_path / "m.pt")


def test_types_and_sizes_of_one_entry_of_a_zip_file_share_its_memory(tmp_path: Path) -> None:
    references = [reference("Float", ENTRIES - i) for i in range(4)]
    references += [reference("Int", ENTRIES), reference("Byte", ENTRIES)]
    file, starts = tmp_path / "m.pt", set()
    for padding in range(4):
        with zipfile.ZipFile(file, "w") as new:
            new.writestr("m/data.pkl", tensors(references))
            new.writestr("m/" + "x" * padding, b"")
            new.writestr("m/data/0", torch.arange(float(ENTRIES)).numpy().tobytes())
        starts.add(file.read_bytes().index(torch.arange(float(ENTRIES)).numpy().tobytes()) % 4)
        found = load_tensors(file)
        places = [tensor.data_ptr() for tensor in found.values() if tensor.element_size() == 4]
        assert len(places) == 5
        assert len(set(places)) == 1
        assert places[0] % 4 == 0
    assert starts - {0}
