"""What is at the output before, during and after a run, also after one that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints.output import staging, writer
from magmerge.checkpoints.output.target import Target
from magmerge.core.errors import OutputError
from tests.conftest import SHAPES, State
from tests.quick import quick_ones


def merge(folders: list[Path], out: Path, **more: object) -> magmerge.Result:
    return magmerge.merge(base=folders[0], experts=folders[1:], method="average", out=out, **more)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_full_output_needs_to_be_overwritten_on_purpose(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (folders[0] / "merges.txt").write_text("old")
    merge(folders, out)
    (folders[0] / "merges.txt").unlink()
    with pytest.raises(OutputError, match="--yes"):
        merge(folders, out)
    merge(folders, out, overwrite=True)
    assert not (out / "merges.txt").exists()
    assert not leftovers(tmp_path)


def test_an_empty_folder_is_taken(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(folders, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_never_replaced(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="other things than a model"):
        merge(folders, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_inputs_are_never_overwritten(folders: list[Path], tmp_path: Path) -> None:
    for out in (folders[0], folders[2], tmp_path, folders[1] / "model.safetensors"):
        with pytest.raises(OutputError, match="is the input"):
            merge(folders, out, overwrite=True)


def test_a_second_run_into_the_same_output_is_refused(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    place = Target(out, single=False, weights="model.safetensors")
    with staging.Staging(place, "key"), pytest.raises(OutputError, match="another magmerge"):
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
    import os, signal, sys, time
    # A shell's background job is started deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pathlib import Path
    import magmerge
    from magmerge.checkpoints.output import staging
    from magmerge.checkpoints.output import writer

    moment, base, expert, out = sys.argv[1], *map(Path, sys.argv[2:])

    def pause(*arguments):
        os.write(1, b"here\n")
        time.sleep(30)

    if moment == "write":
        writer.FileSink.write = pause
    elif moment == "verify":
        writer.FileSink._verify = pause
    elif moment == "rename":
        rename, exchange = staging.os.rename, staging.exchange
        def slow(source, target):
            if Path(target) == out:
                pause()
            rename(source, target)
        staging.os.rename = slow
        staging.exchange = lambda *names: pause() or exchange(*names)
    magmerge.merge(base=base, experts=[expert], method="average", out=out, overwrite=True)
"""


@pytest.mark.parametrize(
    ("moment", "existing", "blow"),
    quick_ones(
        product(("write", "verify", "rename"), (False, True), (signal.SIGKILL, signal.SIGINT)),
        lambda case: case in (("write", False, signal.SIGINT), ("rename", True, signal.SIGKILL)),
    ),
)
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
    if existing:
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
    place = Target(out, single=False, weights="model.safetensors")
    with pytest.raises(OutputError, match="--yes"), staging.Staging(place, "key"):
        pass
    assert (out / "model.safetensors").is_file()


def test_without_an_exchange_in_one_step_two_renames_do(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "exchange", lambda *_: False)
    merge(folders[:2], tmp_path / "out")
    merge(folders, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not leftovers(tmp_path)


def test_what_appears_during_the_run_is_not_replaced(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def intrude(*_: object) -> None:
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("precious")

    with pytest.raises(OutputError, match="other things"):
        merge(folders, out, progress=intrude)
    assert (out / "thesis.tex").read_text() == "precious"


def test_a_project_with_a_config_is_no_model(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "src").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "src/main.ts"):
        (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(OutputError, match="other things"):
        merge(folders, tmp_path / "out", overwrite=True)


def test_a_linked_input_and_the_donor_are_inputs_too(folders: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "blobs"
    cache.mkdir()
    (folders[1] / "model.safetensors").rename(cache / "abc")
    (folders[1] / "model.safetensors").symlink_to(cache / "abc")
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_text("{}")
    for out in (folders[1], cache, donor):
        with pytest.raises(OutputError, match="is the input"):
            merge(folders, out, overwrite=True, donor=donor)


def test_a_link_at_the_output_is_followed(folders: list[Path], tmp_path: Path) -> None:
    merge(folders[:2], tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        merge(folders, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert not leftovers(tmp_path)


def test_a_link_where_magmerge_would_work_is_not_cleared(
    folders: list[Path], tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a.txt").write_text("a")
    (tmp_path / ".out.magmerge-partial").symlink_to(precious)
    with pytest.raises(OutputError, match="a link stands"):
        merge(folders, tmp_path / "out")
    assert (precious / "a.txt").exists()


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    base = {f"t{i}": torch.zeros(2) for i in range(200)}
    expert = {name: torch.ones(2) for name in base}
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        result = magmerge.merge(base=base, experts=[expert], method="average")
        with pytest.warns(magmerge.MagmergeWarning, match=r"no config\.json"):
            result.save(tmp_path / "out", shard_size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 200


def test_locks_of_dead_runs_do_not_bind(folders: list[Path], tmp_path: Path) -> None:
    partial = tmp_path / ".out.magmerge-partial"
    partial.mkdir()
    (partial / ".lock").write_text("")
    (partial / "model.safetensors").write_bytes(b"half")
    started = time.monotonic()
    merge(folders, tmp_path / "out")
    assert time.monotonic() - started < 30
    assert not leftovers(tmp_path)
