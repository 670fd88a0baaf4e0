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
from magmerge.checkpoints.adapters.publishing import write_adapter
from safetensors.torch import load_file, safe_open

from magmerge.checkpoints.adapters import publishing
from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.checkpoints.output import staging
from magmerge.core.errors import OutputError
from magmerge.core.types import Naming

MODULE = {
    "peft": "mid_block.attentions.0.proj_in",
    "kohya": "lora_unet_mid_block_attentions_0_proj_in",
}


def content(naming: Naming = "peft", seed: int = 0, dtype: torch.dtype = torch.float32) -> Content:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator).to(dtype) for shape in ((8, 2), (2, 6)))
    return Content(
        naming,
        {MODULE[naming]: LowRank(up, down, 1.0)},
        {MODULE[naming]: "linear"},
        metadata={"b": "2", "a": "1", "c": "3"},
    )


def write(out: Path, naming: Naming = "peft", seed: int = 0, **more: object) -> Path:
    options = {"inputs": [], "overwrite": False, **more}
    return write_adapter(out, content(naming, seed), **options)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_for_peft_and_one_file_for_the_others(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {"magmerge.json": b"{}\n"}
    out = write_adapter(
        tmp_path / "out", content(dtype=dtype), inputs=[], overwrite=False, beside=given
    )
    names = {"adapter_model.safetensors", "adapter_config.json", "magmerge.json"}
    assert {file.name for file in out.iterdir()} == names
    tensors = load_file(out / "adapter_model.safetensors")
    expected = content(dtype=dtype).modules[MODULE["peft"]]
    prefix = f"base_model.model.{MODULE['peft']}"
    assert torch.equal(tensors[f"{prefix}.lora_A.weight"], expected.down)
    assert torch.equal(tensors[f"{prefix}.lora_B.weight"], expected.up)
    file = write(tmp_path / "one.safetensors", "kohya", beside=given)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out", "one.safetensors", "one.magmerge.json"
    }  # fmt: skip
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["a"] == "1"
    assert not leftovers(tmp_path)


def test_equal_adapters_are_equal_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{i}.safetensors", "kohya") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "plain").stat().st_mode
    assert all(file.stat().st_mode == mode for file in write(tmp_path / "out").iterdir())


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
        write(Path(name), naming)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    for name, naming in (("out", "peft"), ("out.safetensors", "kohya")):
        out = write(tmp_path / name, naming)
        with pytest.raises(OutputError, match="--yes"):
            write(out, naming, seed=1)
        write(out, naming, seed=1, overwrite=True)
    (tmp_path / "lone.magmerge.json").write_text('{"magmerge": "0"}')
    with pytest.raises(OutputError, match="--yes"):
        write(tmp_path / "lone.safetensors", "kohya", beside={"magmerge.json": b"{}"})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="other things than a model"):
        write(tmp_path / "work", overwrite=True)
    assert not leftovers(tmp_path)


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "in")
    files = list(source.iterdir())
    for out in (source, tmp_path):
        with pytest.raises(OutputError, match="is the input"):
            write(out, inputs=files, overwrite=True)
    file = write(tmp_path / "in.safetensors", "kohya")
    with pytest.raises(OutputError, match="is the input"):
        write(file, "kohya", inputs=[file], overwrite=True)
    write(tmp_path / "beside.safetensors", "kohya", inputs=[file])


def test_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert write(tmp_path / "link", overwrite=True) == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["../escaped.json", "a/b", "..", "a\nb", ""])
def test_files_beside_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(OutputError, match="cannot be a file's name"):
        write(tmp_path / "home" / "out", beside={name: b""})
    assert not list((tmp_path / "home").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(("name", "naming"), [("out", "peft"), ("out.safetensors", "kohya")])
@pytest.mark.parametrize("at", [0, 1])
def test_a_full_disk_is_one_clear_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, naming: Naming, at: int
) -> None:
    calls = iter(range(9))
    real = os.fsync

    def full(handle: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(publishing.os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        write(tmp_path / name, naming, beside={"magmerge.json": b"{}"})
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are free there"):
        write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging.Staging(out, single=False), pytest.raises(OutputError, match="another magmerge"):
        write(out)
    write(out)


RECORD = {"magmerge.json": b'{"magmerge": "0"}'}
SLOW_RUN = r"""
    import os, sys, time
    from pathlib import Path
    from magmerge.checkpoints.adapters import publishing
    from magmerge.checkpoints.output import staging
    from tests.adapters.test_publishing import write

    moment, naming, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])

    def pause(*arguments):
        os.write(1, b"here\n")
        time.sleep(30)

    if moment == "write":
        publishing._bytes_of = pause
    elif moment == "verify":
        publishing._verify = pause
    else:
        rename, replace, exchange = staging.os.rename, staging.os.replace, staging._exchange
        def slow(real):
            def renamed(source, target):
                if Path(target) == out:
                    pause()
                real(source, target)
            return renamed
        staging.os.rename, staging.os.replace = slow(rename), slow(replace)
        staging._exchange = lambda *names: pause() or exchange(*names)
    write(out, naming, seed=1, overwrite=True, beside={"magmerge.json": b'{"magmerge": "0"}'})
"""


@pytest.mark.parametrize(
    ("moment", "naming", "existing", "blow"),
    [
        ("write", "peft", False, signal.SIGKILL),
        ("verify", "peft", True, signal.SIGKILL),
        ("rename", "peft", False, signal.SIGKILL),
        ("rename", "peft", True, signal.SIGKILL),
        ("write", "peft", True, signal.SIGINT),
        ("write", "kohya", False, signal.SIGKILL),
        ("rename", "kohya", True, signal.SIGKILL),
    ],
)
def test_a_killed_run_leaves_no_output_or_a_whole_one(
    tmp_path: Path, moment: str, naming: Naming, existing: bool, blow: signal.Signals
) -> None:
    out = tmp_path / ("out" if naming == "peft" else "out.safetensors")
    file = out / "adapter_model.safetensors" if naming == "peft" else out
    before = write(out, naming) and file.read_bytes() if existing else None
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_RUN), moment, naming, str(out)],
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
    write(out, naming, seed=1, overwrite=True, beside=RECORD)
    assert file.read_bytes() != before
    if naming == "peft":
        json.loads((out / "adapter_config.json").read_text())
    assert not leftovers(tmp_path)
