from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints.open_files import Handles
from magmerge.checkpoints.output.writer import FileSink
from magmerge.core.errors import OutputError
from tests.conftest import State


def run(folders: list[Path], out: Path, **more: object) -> magmerge.Result:
    return magmerge.merge(base=folders[0], experts=folders[1:], method="average", out=out, **more)


def test_shards_hold_the_same_tensors_as_one_file(folders: list[Path], tmp_path: Path) -> None:
    whole = run(folders, tmp_path / "whole").state_dict()
    parts = run(folders, tmp_path / "parts", shard_size="6KB")
    assert len(parts.plan.shards) > 2
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole)
    for name, tensor in parts.state_dict().items():
        assert torch.equal(tensor, whole[name])
        in_file = load_file(tmp_path / "parts" / index["weight_map"][name])[name]
        assert torch.equal(in_file, tensor)


def test_one_file_carries_its_recipe(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    result = run(folders, out, shard_size="1KB")
    assert set(load_file(out)) == set(result.state_dict())
    assert (tmp_path / "merged.magmerge.json").is_file()
    from safetensors import safe_open

    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["magmerge_recipe"])["method"] == "average"


def test_equal_runs_give_equal_bytes(folders: list[Path], tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("two", 4)):
        run(folders, tmp_path / name, threads=threads)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_tensor_that_was_never_written_is_found(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileSink.write

    def forgetful(self: FileSink, step: object, start: int, part: torch.Tensor) -> None:
        if step.spec.name != "lm_head.weight":
            write(self, step, start, part)

    monkeypatch.setattr(FileSink, "write", forgetful)
    with pytest.raises(OutputError, match=r"not as planned: lm_head\.weight"):
        run(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_in_memory_are_saved_alike(
    folders: list[Path], tmp_path: Path, base: State, experts: list[State]
) -> None:
    written = run(folders, tmp_path / "direct")
    kept = magmerge.merge(base=folders[0], experts=folders[1:], method="average")
    assert kept.path is None
    kept.save(tmp_path / "saved")
    for path in written.path.iterdir():
        assert path.read_bytes() == (tmp_path / "saved" / path.name).read_bytes()


def test_a_shard_stays_open_while_it_is_written_and_is_closed_at_the_end(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open

    def counted(path: Any, *rest: Any, **named: Any) -> int:
        opened.append(str(path))
        return real(path, *rest, **named)

    before = Handles.count
    monkeypatch.setattr(os, "open", counted)
    run(folders, tmp_path / "out")
    staged = [path for path in opened if path.endswith("magmerge-partial/model.safetensors")]
    assert 1 <= len(staged) <= 2  # once to write, once by the reader that verifies
    gc.collect()
    assert Handles.count <= before
