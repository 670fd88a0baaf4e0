"""Pages of large files are given back once a layer is merged, and no sooner; of others never."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core import file_system

SHAPE = (640, 512)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_fadvise") or not Path("/proc/self/status").exists(),
    reason="only Linux tells which pages it keeps",
)


def kept(file: Path) -> float:
    """The share of a file's pages that are in the system's memory."""
    size = file.stat().st_size
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        place = np.frombuffer(mapped, np.uint8)
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        assert mincore(place.ctypes.data, size, pages.ctypes.data) == 0
        del place
    return float((pages & 1).mean())


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    files = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        state = {f"layers.{i}.weight": torch.randn(SHAPE, generator=generator) for i in range(3)}
        files.append(tmp_path / f"{number}.safetensors")
        save_file(state, files[-1])
        with files[-1].open("rb") as stream:
            os.fsync(stream.fileno())
    return files


def merged(models: list[Path], out: Path) -> Path:
    magmerge.merge(base=models[0], experts=models[1:], method="ties", out=out, threads=2)
    return out


def test_only_what_is_large_is_given_back(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = merged(models, tmp_path / "small.safetensors")
    if min(map(kept, models)) < 0.9:
        pytest.skip("this file system keeps no pages")
    with monkeypatch.context() as patch:
        patch.setattr(file_system, "memory_size", lambda: 2 << 20)
        reads: list[float] = []
        real = magmerge.checkpoints.safetensors.SafetensorsCheckpoint.give_back
        checkpoint = magmerge.checkpoints.safetensors.SafetensorsCheckpoint

        def after(self: object, name: str, start: int, stop: int) -> None:
            reads.append(stop - start)
            real(self, name, start, stop)

        patch.setattr(checkpoint, "give_back", after)
        large = merged(models, tmp_path / "large.safetensors")
    # Each layer of each model once, as a whole, and none while its thresholds are sought.
    assert reads == [SHAPE[0] * SHAPE[1]] * 9
    assert load_file(small).keys() == load_file(large).keys()
    for name, tensor in load_file(small).items():
        assert torch.equal(tensor, load_file(large)[name])


def test_a_file_that_is_given_back_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(8 << 20))
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        file_system.read_in_order(stream.fileno())
        before = kept(file)
        file_system.give_back(stream.fileno(), 0, 0)
    if before < 0.9:
        pytest.skip("this file system keeps no pages")
    assert kept(file) < 0.1


def test_files_are_large_beside_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "memory_size", lambda: 100)
    assert not file_system.are_large([25, 25])
    assert file_system.are_large([25, 26])
    monkeypatch.setattr(file_system, "memory_size", lambda: None)
    assert not file_system.are_large([1 << 60])
