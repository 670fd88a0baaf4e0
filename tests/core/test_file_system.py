"""Systems without locks, exchanged names, or reads and writes at a place: the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from magmerge.checkpoints.output.own_files import is_locked, lock_file
from magmerge.core import file_system
from magmerge.core.errors import OutputError
from magmerge.core.whole_file import unfinished, write_whole

BARE = """
import builtins, ctypes, os, sys, types
for name in ("fcntl", "resource", "grp", "pwd"):
    sys.modules[name] = None
import torch, safetensors.torch, numpy
for name in ("pwrite", "preadv", "pread", "pwritev", "posix_fadvise", "geteuid", "getuid",
             "sched_getaffinity", "O_NOFOLLOW"):
    if hasattr(os, name):
        delattr(os, name)
real = ctypes.CDLL
ctypes.CDLL = lambda name=None, *more, **how: (
    types.SimpleNamespace() if name is None else real(name, *more, **how))
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc"):
        frame = sys._getframe(1)
        assert "magmerge" not in frame.f_code.co_filename, arguments
sys.addaudithook(watch)
"""
"""What makes a Python like that of another system, before anything of magmerge is imported."""
MERGE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, magmerge
generator = torch.Generator().manual_seed(0)
base = {f"layers.{i}.weight": torch.randn(16, 8, generator=generator) for i in range(2)}
experts = {n: {k: v + 0.1 * torch.randn(16, 8, generator=generator) for k, v in base.items()}
           for n in "ab"}
for name, more in (("out", {}), ("out", {"overwrite": True}), ("out.safetensors", {}),
                   ("small", {"shard_size": "600B", "seed": 1, "method": "dare"}),
                   ("rank", {"rank": 2})):
    call = {"method": "ties", "calibrate": "wsc", "out": f"{sys.argv[1]}/{name}", **more}
    magmerge.merge(base=base, experts=experts, **call)
magmerge.merge(base=f"{sys.argv[1]}/out", experts={"a": f"{sys.argv[1]}/small", "b": experts["a"]},
               method="average", out=f"{sys.argv[1]}/again")
assert magmerge.verify(f"{sys.argv[1]}/again").sound
"""


def written(folder: Path, program: str) -> dict[str, bytes]:
    """What a program in a process of its own leaves in a folder."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        file.relative_to(folder).as_posix(): file.read_bytes().replace(bytes(folder), b"FOLDER")
        for file in files
    }


def test_a_merge_needs_nothing_that_only_some_systems_have(tmp_path: Path) -> None:
    """Nor do its imports: what is missing is hidden before they begin."""
    bare, usual = (
        written(tmp_path / name, program)
        for name, program in (("bare", BARE + MERGE), ("usual", MERGE))
    )
    assert bare.keys() == usual.keys()
    assert {name for name in bare if bare[name] != usual[name]} <= {
        name for name in bare if not name.endswith(".safetensors")
    }
    assert not [name for name in bare if ".magmerge-" in name]


class ByteRanges(SimpleNamespace):
    """Locks as Windows has them: of a range of bytes, by one open file at a time."""

    LK_NBLCK = 1

    def __init__(self) -> None:
        super().__init__(held={})

    def locking(self, handle: int, _: int, size: int) -> None:
        assert (size, os.lseek(handle, 0, os.SEEK_CUR)) == (1, file_system.FAR)
        place = os.fstat(handle).st_ino
        if self.held.get(place, handle) != handle:
            raise PermissionError(13, "taken")
        self.held[place] = handle


def test_byte_ranges_lock_where_whole_files_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "fcntl", None)
    monkeypatch.setattr(file_system, "msvcrt", ByteRanges())
    handle = lock_file(tmp_path / ".lock", tmp_path / "out")
    with pytest.raises(OutputError, match="another magmerge run is writing it now"):
        lock_file(tmp_path / ".lock", tmp_path / "out")
    assert is_locked(tmp_path / ".lock")
    os.close(handle)
    assert (tmp_path / ".lock").stat().st_size == 0


@pytest.mark.parametrize("there", [True, False])
def test_bytes_at_a_place(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not there:
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "pwrite")
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert file_system.write_at(handle, memoryview(b"four"), 4) == 4
    assert file_system.write_at(handle, memoryview(b"zero"), 0) == 4
    view = memoryview(bytearray(6))
    assert file_system.read_at(handle, view, 3) == 5
    assert bytes(view) == b"ofour\0"
    assert file_system.read_at(handle, view, 8) == 0
    os.close(handle)


def test_what_a_killed_run_left_of_a_file_is_begun_anew(tmp_path: Path) -> None:
    path, staged = tmp_path / "report.html", tmp_path / ".report.html.magmerge-partial"
    staged.write_text("half of a much longer text")
    write_whole(path, "whole")
    assert path.read_text() == "whole"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_two_runs_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with unfinished(path) as first:
        first.write_text("first")
        write_whole(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("kind", ["symlink", "link", "folder"])
def test_what_stands_where_a_file_would_grow_is_not_touched(kind: str, tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "out.json"
    precious.write_text("precious")
    staged = tmp_path / ".out.json.magmerge-partial"
    if kind == "symlink":
        staged.symlink_to(precious)
    elif kind == "link":
        staged.hardlink_to(precious)
    else:
        staged.mkdir()
    write_whole(path, "whole")
    assert path.read_text() == "whole"
    assert precious.read_text() == "precious"
    assert staged.exists()


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail() -> None:
        with unfinished(path) as place:
            place.write_text("half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "old"
