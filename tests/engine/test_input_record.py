"""What a record tells of inputs: the digests of what was merged, without a second read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints import input_digests
from magmerge.core.errors import CheckpointError
from tests.conftest import CommandLine
from tests.reference_digest import reference_digest

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """A base and two experts, of which one layer has several pieces with torn leaves."""
    torch.manual_seed(0)
    base = {
        "a.weight": torch.randn(700, 1111),
        "a.bias": torch.randn(700),
        "b.weight": torch.randn(130, 257),
        "norm.weight": torch.randn(33),
    }
    files = {}
    for name in ("base", "one", "two"):
        change = 0.0 if name == "base" else 0.1
        state = {k: (t + change * torch.randn(t.shape)).bfloat16() for k, t in base.items()}
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(state, files[name])
    return files


def merged(paths: dict[str, Path], out: Path | None = None, **how: Any) -> magmerge.Result:
    experts = [path for name, path in paths.items() if name != "base"]
    return magmerge.merge(base=paths["base"], experts=experts, out=out, **how)


def inputs_of(out: Path) -> list[dict[str, Any]]:
    file = out / "magmerge.json" if out.is_dir() else out.with_name(f"{out.stem}.magmerge.json")
    content: list[dict[str, Any]] = json.loads(file.read_text())["inputs"]
    return content


@pytest.mark.parametrize(
    "how",
    [
        {"method": "average", "calibrate": "wsc", "threads": 3},
        {"method": "ties", "params": {"scope": "model"}, "threads": 2},
        {"method": "dare_ties", "threads": 1, "memory": "150MB"},
        {"method": "tsv_m"},
    ],
    ids=lambda how: how["method"],
)
def test_what_is_merged_is_digested_without_a_second_read(
    paths: dict[str, Path], tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_digests, "read_into", lambda *_: pytest.fail("a second read"))
    merged(paths, tmp_path / "out", **how)
    told = [entry["files"] for entry in inputs_of(tmp_path / "out")]
    assert told == [{path.name: reference_digest(path)} for path in paths.values()]


def test_tensors_that_nobody_reads_are_digested_at_the_end(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({**load_file(paths["two"]), "more.weight": torch.ones(9)}, paths["two"])
    read, names = input_digests.read_into, []
    monkeypatch.setattr(input_digests, "read_into", lambda *a: (read(*a), names.append(a[-1])))
    merged(paths, tmp_path / "out", ignore=["a.*", "more.*"])
    assert set(names) == {"a.weight", "a.bias", "more.weight"}
    told = [entry["files"] for entry in inputs_of(tmp_path / "out")]
    assert told == [{path.name: reference_digest(path)} for path in paths.values()]


def test_a_result_in_memory_is_of_what_was_read_and_of_nothing_later(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    result = merged(paths, method="average")
    expected = reference_digest(paths["one"])
    result.save(tmp_path / "out")
    assert inputs_of(tmp_path / "out")[1]["files"] == {"one.safetensors": expected}
    content = load_file(paths["one"])
    paths["one"].unlink()
    save_file({name: tensor + 1 for name, tensor in content.items()}, paths["one"])
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        result.save(tmp_path / "later")
    assert not (tmp_path / "later").exists()


def test_files_without_tensors_by_ranges_are_digested_whole(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    old = tmp_path / "two.bin"
    torch.save(load_file(paths["two"]), old)
    merged({**paths, "two": old}, tmp_path / "out", method="average")
    whole = f"blake3:{blake3(old.read_bytes()).hexdigest()}"
    assert inputs_of(tmp_path / "out")[2]["files"] == {"two.bin": whole}
    assert sound(tmp_path / "out")
    old.write_bytes(old.read_bytes() + b"0")
    assert not sound(tmp_path / "out")


def test_a_model_in_memory_has_the_digest_of_a_file_that_holds_it(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    states = {name: load_file(path) for name, path in paths.items()}
    experts = {name: state for name, state in states.items() if name != "base"}
    magmerge.merge(base=states["base"], experts=experts, out=tmp_path / "out")
    told = [entry["content"] for entry in inputs_of(tmp_path / "out")]
    assert told == [reference_digest(path) for path in paths.values()]


def sound(out: Path) -> bool:
    checks = {check.name: check for check in magmerge.verify(out).checks}
    assert checks["inputs"].done
    return not checks["inputs"].faults


def test_sha256_is_recorded_beside_where_it_is_asked_for(
    paths: dict[str, Path], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    merged(paths, tmp_path / "out", method="average")
    assert not any("sha256" in entry for entry in inputs_of(tmp_path / "out"))
    done = magmerge_cli("merge", "--sha256", tmp_path / "out" / "magmerge.yaml", tmp_path / "again")
    assert done.code == 0, done.message
    one = inputs_of(tmp_path / "again")[1]
    expected = hashlib.sha256(paths["one"].read_bytes()).hexdigest()
    assert one["sha256"] == {"one.safetensors": expected}
    assert one["files"] == {"one.safetensors": reference_digest(paths["one"])}
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()


@pytest.mark.parametrize("kind", ["tensors", "sha256"])
def test_verify_tells_of_both_kinds_whether_an_input_was_changed(
    paths: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    merged(paths, tmp_path / "out", method="average")
    if kind == "sha256":
        # As versions before this one recorded inputs.
        file = tmp_path / "out" / "magmerge.json"
        record = json.loads(file.read_text())
        for entry in record["inputs"]:
            content = (tmp_path / "out" / entry["source"]).read_bytes()
            entry["files"] = dict.fromkeys(entry["files"], hashlib.sha256(content).hexdigest())
        file.write_text(json.dumps(record))
    assert sound(tmp_path / "out")
    with paths["two"].open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert not sound(tmp_path / "out")
    paths["two"].write_bytes(b"no safetensors file")
    assert not sound(tmp_path / "out")


def test_names_in_the_hubs_cache_are_digests(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(paths["one"].read_bytes()).hexdigest()
    home = tmp_path / "models--org--one"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots").mkdir()
    paths["one"].rename(home / "blobs" / digest)
    cached = home / "snapshots" / "model.safetensors"
    cached.symlink_to(home / "blobs" / digest)
    monkeypatch.setattr(input_digests, "read_into", lambda *_: pytest.fail("a second read"))
    merged({**paths, "one": cached}, tmp_path / "out", method="average")
    entry = inputs_of(tmp_path / "out")[1]
    assert entry["files"] == {"model.safetensors": digest}
    assert entry["digests"] == "told by the hub"
    assert sound_but_for_reads(tmp_path / "out", monkeypatch)
    with (home / "blobs" / digest).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert not sound(tmp_path / "out")


def sound_but_for_reads(out: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.undo()
    return sound(out)


def test_results_of_earlier_documents_are_digested_though_they_are_gone(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    first = magmerge.Recipe(
        name="first", base=str(paths["base"]), experts={"one": str(paths["one"])}, method="average"
    )
    second = first.model_copy(
        update={"name": None, "experts": {"first": "first", "two": str(paths["two"])}}
    )
    result = magmerge.run([first, second], tmp_path / "out")
    result.save(tmp_path / "again")
    told, again = inputs_of(tmp_path / "out"), inputs_of(tmp_path / "again")
    assert [entry["files"] for entry in told] == [entry["files"] for entry in again]
    digests = [digest for entry in told for digest in entry["files"].values()]
    assert all(digest.startswith("blake3-tensors:") for digest in digests)
