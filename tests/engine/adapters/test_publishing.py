"""What is at an adapter's output before, during and after it is written, and after a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

import magmerge
from magmerge.checkpoints.output import staging
from magmerge.checkpoints.output.target import Target
from magmerge.core.errors import OutputError
from magmerge.core.types import Naming
from tests.quick import slow

MODULE = "unet.mid_block.attentions.0.proj_in"
RECORDS = {"magmerge.json", "magmerge.yaml"}


def adapter(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """An adapter's file, with diffusers' names."""
    path = folder.parent / f"{folder.name}-inputs" / f"{seed}.safetensors"
    path.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator).to(dtype) for shape in ((8, 2), (2, 6)))
    state = {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": up}
    save_file(state, path, metadata={"b": "2", "a": "1", "c": "3"})
    return path


def write(out: Path, source: Path, naming: Naming = "peft", *, overwrite: bool = False) -> Path:
    done = magmerge.convert(source, out, naming=naming, overwrite=overwrite)
    return done.path


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_for_peft_and_one_file_for_the_others(tmp_path: Path, dtype: torch.dtype) -> None:
    source = adapter(tmp_path, dtype=dtype)
    out = write(tmp_path / "out", source)
    names = {"README.md", "adapter_model.safetensors", "adapter_config.json", *RECORDS}
    assert {file.name for file in out.iterdir()} == names
    tensors, stored = load_file(out / "adapter_model.safetensors"), load_file(source)
    module = f"base_model.model.{MODULE.removeprefix('unet.')}"
    for factor in ("lora_A.weight", "lora_B.weight"):
        assert torch.equal(tensors[f"{module}.{factor}"], stored[f"{MODULE}.{factor}"])
    file = write(tmp_path / "one.safetensors", source, "kohya")
    beside = {f"one.{name}" for name in RECORDS}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "one.safetensors", *beside}
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["a"] == "1"
    assert not leftovers(tmp_path)


def test_equal_adapters_are_equal_bytes(tmp_path: Path) -> None:
    source = adapter(tmp_path)
    first, second = (write(tmp_path / f"{i}.safetensors", source, "kohya") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "plain").stat().st_mode
    out = write(tmp_path / "out", adapter(tmp_path))
    assert all(file.stat().st_mode == mode for file in out.iterdir())


@pytest.mark.parametrize(
    ("name", "naming", "words"),
    [
        ("out.safetensors", "peft", "is a folder"),
        ("out", "kohya", "is one file"),
        ("out.bin", "kohya", "is one file"),
        ("out.bin", "peft", "writes no .bin"),
        (".", "peft", "current folder"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, naming: Naming, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=words):
        write(Path(name), adapter(tmp_path), naming)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    first, second = adapter(tmp_path), adapter(tmp_path, 1)
    for name, naming in (("out", "peft"), ("out.safetensors", "kohya")):
        out = write(tmp_path / name, first, naming)
        with pytest.raises(OutputError, match="--yes"):
            write(out, second, naming)
        write(out, second, naming, overwrite=True)
    (tmp_path / "lone.magmerge.json").write_text('{"magmerge": "0"}')
    with pytest.raises(OutputError, match="--yes"):
        write(tmp_path / "lone.safetensors", first, "kohya")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="other things than a model"):
        write(tmp_path / "work", first, overwrite=True)
    assert not leftovers(tmp_path)


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "in", adapter(tmp_path))
    for out in (source, tmp_path):
        with pytest.raises(OutputError, match="is the input"):
            write(out, source, overwrite=True)
    file = write(tmp_path / "in.safetensors", source, "kohya")
    with pytest.raises(OutputError, match="is the input"):
        write(file, file, "kohya", overwrite=True)
    write(tmp_path / "beside.safetensors", file, "kohya")


def test_a_link_is_followed(tmp_path: Path) -> None:
    source = adapter(tmp_path)
    write(tmp_path / "real", source)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert write(tmp_path / "link", source, overwrite=True) == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("name", "naming"), [("out", "peft"), ("out.safetensors", "kohya")])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_full_disk_is_one_clear_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, naming: Naming, at: int
) -> None:
    source, calls, real = adapter(tmp_path), iter(range(99)), os.fsync

    def full(handle: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        write(tmp_path / name, source, naming)
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    source = adapter(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are free there"):
        write(tmp_path / "out", source)
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    out, source = tmp_path / "out", adapter(tmp_path)
    place = Target(out, single=False, weights="adapter_model.safetensors")
    with staging.Staging(place, "key"), pytest.raises(OutputError, match="another magmerge"):
        write(out, source)
    write(out, source)


SLOW_RUN = r"""
    import os, signal, sys, time
    # A shell's background job is started deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pathlib import Path
    import magmerge
    from magmerge.checkpoints.output import staging
    from magmerge.checkpoints.output import writer

    moment, naming, source, out = *sys.argv[1:4], Path(sys.argv[4])

    def pause(*arguments):
        os.write(1, b"here\n")
        time.sleep(30)

    if moment == "write":
        writer.FileSink.write = pause
    elif moment == "verify":
        writer.FileSink._verify = pause
    else:
        rename, replace, exchange = staging.os.rename, staging.os.replace, staging.exchange
        def slow(real):
            def renamed(source, target):
                if Path(target) == out:
                    pause()
                real(source, target)
            return renamed
        staging.os.rename, staging.os.replace = slow(rename), slow(replace)
        staging.exchange = lambda *names: pause() or exchange(*names)
    magmerge.convert(source, out, naming=naming, overwrite=True)
"""


@pytest.mark.parametrize(
    ("moment", "naming", "existing", "blow"),
    [
        slow("write", "peft", False, signal.SIGKILL),
        slow("verify", "peft", True, signal.SIGKILL),
        slow("rename", "peft", False, signal.SIGKILL),
        slow("rename", "peft", True, signal.SIGKILL),
        ("write", "peft", True, signal.SIGINT),
        slow("write", "kohya", False, signal.SIGKILL),
        ("rename", "kohya", True, signal.SIGKILL),
    ],
)
def test_a_killed_run_leaves_no_output_or_a_whole_one(
    tmp_path: Path, moment: str, naming: Naming, existing: bool, blow: signal.Signals
) -> None:
    out = tmp_path / ("out" if naming == "peft" else "out.safetensors")
    file = out / "adapter_model.safetensors" if naming == "peft" else out
    first, second = adapter(tmp_path), adapter(tmp_path, 1)
    before = write(out, first, naming) and file.read_bytes() if existing else None
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_RUN), moment, naming, second, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout.readline() == b"here\n"
    run.send_signal(blow)
    run.wait()
    if before is None:
        assert not out.exists()
    else:
        assert file.read_bytes() == before
    write(out, second, naming, overwrite=True)
    assert file.read_bytes() != before
    if naming == "peft":
        json.loads((out / "adapter_config.json").read_text())
    assert not leftovers(tmp_path)
