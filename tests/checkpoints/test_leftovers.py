"""What killed runs left: listed, put right, removed; nothing else is touched."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints.output.leftovers import YOUNG
from magmerge.core.errors import CheckpointError
from tests.checkpoints.test_staging import merge
from tests.conftest import CommandLine


def partial(place: Path, **files: str) -> Path:
    folder = place.with_name(f".{place.name}.magmerge-partial")
    folder.mkdir(parents=True)
    for name, text in {".lock": "", ".job": "key", **files}.items():
        (folder / name).write_text(text)
    return folder


def kinds(folder: Path) -> dict[str, str]:
    return {left.path.name: left.kind for left in magmerge.clean(folder)}


def test_every_kind_is_found_and_removed(tmp_path: Path) -> None:
    deep = tmp_path / "models" / "deep"
    first = partial(deep / "out", **{"model.safetensors": "x" * 100, ".ledger": "{}"})
    second = partial(tmp_path / "a model.safetensors")
    shelf = tmp_path / ".out.magmerge-documents"
    (shelf / "document-1").mkdir(parents=True)
    (shelf / ".magmerge").write_text("")
    (shelf / "document-1" / "magmerge.json").write_text('{"magmerge": "0.1.0", "files": []}')
    torn = tmp_path / ".magmerge-partial-abc_1"
    torn.write_text("half")
    os.utime(torn, (0, os.stat(torn).st_mtime - 2 * YOUNG))
    fresh = tmp_path / ".magmerge-partial-fresh"
    fresh.write_text("half")
    small = tmp_path / ".report.html.magmerge-partial"
    small.write_text("half")
    kept = [tmp_path / name for name in (".hidden", "out.magmerge-partial", ".x.magmerge-other")]
    for path in kept:
        path.write_text("mine")
    told = magmerge.clean(tmp_path)
    assert {left.path for left in told} == {first, second, shelf, torn, fresh, small}
    by_path = {left.path: left for left in told}
    assert by_path[first].resumable
    assert by_path[first].size == 105
    assert by_path[first].output == deep / "out"
    assert not by_path[second].resumable
    assert by_path[fresh].at_work
    magmerge.clean(tmp_path, remove=True)
    assert [left.path for left in magmerge.clean(tmp_path)] == [fresh]
    assert all(path.read_text() == "mine" for path in kept)


def test_what_a_run_is_at_work_on_stays(tmp_path: Path) -> None:
    folder = partial(tmp_path / "out")
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [left.at_work for left in magmerge.clean(tmp_path, remove=True)] == [True]
    assert folder.is_dir()
    magmerge.clean(tmp_path, remove=True)
    assert not folder.exists()


def test_a_result_that_was_moved_aside_comes_back(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(folders, out)
    before = load_file(out / "model.safetensors")
    out.rename(tmp_path / ".out.magmerge-old")
    assert kinds(tmp_path) == {".out.magmerge-old": "old"}
    magmerge.clean(tmp_path, remove=True)
    after = load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not magmerge.clean(tmp_path)


def test_a_single_file_that_was_being_published_gets_its_record(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    merge(folders, out)
    record = tmp_path / "out.magmerge.json"
    content = record.read_text()
    record.rename(partial(out, **{".publishing": ""}) / record.name)
    magmerge.clean(tmp_path, remove=True)
    assert record.read_text() == content
    assert out.is_file()
    assert not magmerge.clean(tmp_path)


def test_the_users_own_files_in_a_shelf_stay(tmp_path: Path) -> None:
    shelf = tmp_path / ".out.magmerge-documents"
    shelf.mkdir()
    (shelf / ".magmerge").write_text("")
    (shelf / "thesis.tex").write_text("precious")
    magmerge.clean(tmp_path, remove=True)
    assert (shelf / "thesis.tex").read_text() == "precious"


def test_links_are_not_followed(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    partial(place / "out")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(place)
    assert not magmerge.clean(tmp_path / "here")


def test_the_command(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    assert "nothing was left" in magmerge_cli("clean", tmp_path).out
    folder = partial(tmp_path / "out")
    told = magmerge_cli("clean", tmp_path)
    assert "an unfinished result" in told.out
    assert "--yes removes it" in told.out
    (row,) = json.loads(magmerge_cli("clean", tmp_path, "--json").out)
    assert row["path"] == str(folder)
    assert magmerge_cli("clean", tmp_path, "--yes").code == 0
    assert not folder.exists()
    assert magmerge_cli("clean", tmp_path / "nowhere").code == 1
    with pytest.raises(CheckpointError, match="no such folder"):
        magmerge.clean(tmp_path / "nowhere")
