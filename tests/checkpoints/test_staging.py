"""What is at the output before, during and after a run, also after one that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints import staging, writer
from magmerge.errors import OutputError
from tests.conftest import SHAPES, State


def merge(folders: list[Path], out: Path, **more: object) -> magmerge.Result:
    return magmerge.merge(base=folders[0], experts=folders[1:], method="average", out=out, **more)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_full_output_needs_to_be_overwritten_on_purpose(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge(folders, out)
    (out / "old.txt").write_text("old")
    with pytest.raises(OutputError, match="--yes"):
        merge(folders, out)
    merge(folders, out, overwrite=True)
    assert not (out / "old.txt").exists()
    assert not leftovers(tmp_path)


def test_an_empty_folder_is_taken(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(folders, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_never_replaced(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="holds files, but no model"):
        merge(folders, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_inputs_are_never_overwritten(folders: list[Path], tmp_path: Path) -> None:
    for out in (folders[0], folders[2], tmp_path, folders[1] / "model.safetensors"):
        with pytest.raises(OutputError, match="is the input"):
            merge(folders, out, overwrite=True)


def test_a_second_run_into_the_same_output_is_refused(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging.Staging(out, single=False), pytest.raises(OutputError, match="another magmerge"):
        merge(folders, out)
    merge(folders, out)


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write_at", full)
    with pytest.raises(OutputError, match="no space left"):
        merge(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_too_little_space_is_found_before_any_work(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are free there"):
        magmerge.plan(base=folders[0], experts=folders[1:], out=tmp_path / "out")


def test_an_error_in_a_layer_leaves_nothing(
    folders: list[Path], tmp_path: Path, experts: list[State]
) -> None:
    experts[0]["lm_head.weight"][0, 0] = float("nan")
    with pytest.raises(magmerge.MagmergeError, match="1 NaN"):
        magmerge.merge(base=folders[0], experts=experts, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


SLOW_RUN = r"""
    import os, sys, time
    from pathlib import Path
    import magmerge
    from magmerge.checkpoints import staging, writer

    moment, base, expert, out = sys.argv[1], *map(Path, sys.argv[2:])

    def pause(*arguments):
        os.write(1, b"here\n")
        time.sleep(3)

    if moment == "write":
        writer.FileSink.write = pause
    elif moment == "verify":
        writer.FileSink._verify = pause
    elif moment == "rename":
        rename = staging.os.rename
        def slow(source, target):
            if Path(target) == out:
                pause()
            rename(source, target)
        staging.os.rename = slow
    magmerge.merge(base=base, experts=[expert], method="average", out=out, overwrite=True)
"""


@pytest.mark.parametrize("moment", ["write", "verify", "rename"])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_output_or_a_whole_one(
    folders: list[Path], tmp_path: Path, moment: str, existing: bool, blow: signal.Signals
) -> None:
    out = tmp_path / "out"
    if existing:
        merge([folders[0], folders[1]], out)
        before = load_file(out / "model.safetensors")
    arguments = [moment, str(folders[0]), str(folders[2]), str(out)]
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_RUN), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout.readline() == b"here\n"
    run.send_signal(blow)
    run.wait()
    if existing and moment != "rename":
        after = load_file(out / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)
    else:
        assert not out.exists()
    merge([folders[0], folders[2]], out, overwrite=True)
    assert set(load_file(out / "model.safetensors")) == set(SHAPES)
    assert not leftovers(tmp_path)


def test_an_output_moved_aside_by_a_killed_run_comes_back(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge(folders, out)
    os.rename(out, tmp_path / ".out.magmerge-old")
    with staging.Staging(out, single=False):
        assert (out / "model.safetensors").is_file()


def test_locks_of_dead_runs_do_not_bind(folders: list[Path], tmp_path: Path) -> None:
    partial = tmp_path / ".out.magmerge-partial"
    partial.mkdir()
    (partial / ".lock").write_text("")
    (partial / "model.safetensors").write_bytes(b"half")
    started = time.monotonic()
    merge(folders, tmp_path / "out")
    assert time.monotonic() - started < 30
    assert not leftovers(tmp_path)
