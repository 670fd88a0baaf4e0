"""The writer of files of sums: what a kill leaves, and a system that refuses."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.checkpoints.input_sums import SumsWriter
from magmerge.core.errors import OutputError


def test_what_a_kill_leaves_is_cleaned(tmp_path: Path) -> None:
    writer = SumsWriter(tmp_path / "s.safetensors", {"a": (3, 3)}, {})
    writer.keep("a", torch.eye(3))
    (left,) = tmp_path.iterdir()
    assert [one.at_work for one in magmerge.clean(tmp_path, remove=True)] == [True]
    begun = left.read_bytes()
    writer.__exit__(KeyboardInterrupt, None, None)
    assert not [*tmp_path.iterdir()]
    # As a kill leaves it: nobody holds it.
    left.write_bytes(begun)
    assert [one.at_work for one in magmerge.clean(tmp_path, remove=True)] == [False]
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_refuses_is_told_with_the_file(tmp_path: Path) -> None:
    out, limits = tmp_path / "s.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = r"s\.safetensors: cannot be written[^$]*ulimit -f"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (
            pytest.raises(OutputError, match=words),
            SumsWriter(out, {"a": (99, 99)}, {}) as writer,
        ):
            writer.keep("a", torch.eye(99))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(OutputError, match="nowhere"):
        SumsWriter(tmp_path / "nowhere" / "s.safetensors", {}, {})
