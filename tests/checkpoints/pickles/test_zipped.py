"""Zip files that are not as torch writes them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors

Entries = list[tuple[str, bytes]]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A sound file, packed again after `change` has been at its entries."""

    def write(change: Callable[[Entries], Entries], method: int = zipfile.ZIP_STORED) -> Path:
        torch.save({"a": torch.arange(12.0), "b": torch.ones(3)}, tmp_path / "sound.pt")
        with zipfile.ZipFile(tmp_path / "sound.pt") as old:
            entries = [(name, old.read(name)) for name in old.namelist()]
        with zipfile.ZipFile(tmp_path / "m.pt", "w", method) as new:
            for name, content in change(entries):
                new.writestr(name, content)
        return tmp_path / "m.pt"

    return write


def test_a_file_that_was_packed_again_is_read(changed) -> None:
    found = load_tensors(changed(lambda entries: entries))
    assert found["a"].tolist() == list(range(12))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: [*e, e[0]], "two entries of one name"),
        (lambda e: [(n, b"big" if n.endswith("byteorder") else c) for n, c in e], "big-endian"),
        (lambda e: [*e, ("sound/constants.pkl", b"")], "TorchScript"),
        (lambda e: [*e, ("other/data.pkl", b"")], "several pickles"),
        (lambda e: [(n, c) for n, c in e if not n.endswith("data.pkl")], r"no data\.pkl"),
        (lambda e: [(n, c) for n, c in e if not n.endswith("data/1")], "no entry sound/data/1"),
        (lambda e: [(n, c[:40] if n.endswith("data/0") else c) for n, c in e],
         "storage 0 should have 48 bytes, and 40 are there"),
        (lambda e: [(n, c.replace(b"K\x0c", b"\x8a\x05\x00\xe8vH\x17")) for n, c in e],
         "should have 400,000,000,000 bytes"),
        (lambda e: [(n, c.replace(b"K\x0c\x85", b"K\x63\x85")) for n, c in e],
         "reaches up to entry 98 of a storage that has 12"),
        (lambda e: [(n, c.replace(b"K\x0c\x85", b"J\xff\xff\xff\x7f\x85")
                     .replace(b"K\x01\x85", b"K\x00\x85")) for n, c in e], "repeats"),
    ],
)  # fmt: skip
def test_what_torch_does_not_write_is_refused(changed, change, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_tensors(changed(change))


def test_a_compressed_bomb_is_refused_packed(changed) -> None:
    file = changed(lambda e: [*e, ("sound/data/2", b"\0" * 10**8)], zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed") as caught:
        load_tensors(file)
    assert "zip -0" in str(caught.value)


def test_entries_in_each_other_are_refused(changed) -> None:
    """Thousands of them could each have all the bytes of the file."""
    inner = b"PK\x03\x04" + bytes(44)
    file = changed(lambda e: [(n, inner if n.endswith("data/0") else c) for n, c in e])
    content = bytearray(file.read_bytes())
    listed = content.rindex(b"sound/data/1") - 46
    assert content[listed : listed + 4] == b"PK\x01\x02"
    content[listed + 42 : listed + 46] = content.index(inner).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="lies within another one"):
        load_tensors(file)


def test_torchscript_and_tar_files_have_their_own_remedy(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"torch\.jit\.load"):
        load_tensors(tmp_path / "m.pt")
    with tarfile.open(tmp_path / "t.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(CheckpointError, match="tar file"):
        load_tensors(tmp_path / "t.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 400, b"\0" * 400,
                                     b"version https://git-lfs.github.com/spec/v1\n"])  # fmt: skip
def test_what_is_no_torch_file_is_told_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="refused") as caught:
        load_tensors(tmp_path / "m.pt")
    assert "fetch or save this file once more" in str(caught.value)


def test_an_entry_that_begins_beyond_all_files_is_refused(changed) -> None:
    file = changed(lambda entries: entries)
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x01\x02")
    name = int.from_bytes(content[at + 28 : at + 30], "little")
    # A directory entry whose offset is in a field of zip64, and is nearly 2^64.
    content[at + 30 : at + 32] = (12).to_bytes(2, "little")
    content[at + 42 : at + 46] = b"\xff" * 4
    field = b"\x01\x00\x08\x00" + b"\xff" * 8
    content[at + 46 + name : at + 46 + name] = field
    end = content.rindex(b"PK\x05\x06")
    size = int.from_bytes(content[end + 12 : end + 16], "little") + len(field)
    content[end + 12 : end + 16] = size.to_bytes(4, "little")
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is not where its list says"):
        load_tensors(file)


def test_a_file_that_lacks_bytes_in_its_middle_is_refused(changed) -> None:
    content = changed(lambda entries: entries).read_bytes()
    for lost in (10, 100, 200):
        file = changed(lambda entries: entries)
        file.write_bytes(content[:50] + content[50 + lost :])
        with pytest.raises(CheckpointError, match="refused"):
            load_tensors(file)
