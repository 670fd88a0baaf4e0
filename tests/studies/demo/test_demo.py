"""The demo's assets are whole and true, and the demo says what it measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.core.errors import CheckpointError
from magmerge.studies.demo import Demo, demo_tasks, demonstration

LARGEST = 15_000_000


def test_assets_are_small_and_licensed() -> None:
    files = [path for path in demo_tasks.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    licences = (demo_tasks.ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    about = demo_tasks.settings()["tasks"]
    assert len(about) >= 6
    for name, task in about.items():
        assert task["licence"], name
        assert name in licences, name


def test_no_text_is_in_two_splits_and_no_address_in_any() -> None:
    for file in (demo_tasks.ASSETS / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        texts = [" ".join(row["text"].lower().split()) for row in rows]
        assert len(set(texts)) == len(texts), file.name
        assert not any("@" in text and ".com" in text for text in texts), file.name
        assert {row["split"] for row in rows} == {"test", "validation", "calibration"}
        assert all(("label" in row) == (row["split"] != "calibration") for row in rows)


def test_tasks_have_texts_labels_and_heads_that_fit() -> None:
    for name, path in demo_tasks.demo_experts().items():
        lines = (demo_tasks.ASSETS / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        labels = [row["label"] for row in map(json.loads, lines.splitlines()) if "label" in row]
        head = load_file(demo_tasks.ASSETS / "heads" / f"{name}.safetensors")["weight"]
        assert len(labels) >= 300
        assert set(labels) == set(range(len(head)))
        assert torch.allclose(head.norm(dim=-1), torch.ones(len(head)), atol=1e-4)
        assert path.is_dir()


@pytest.mark.slow
def test_experts_are_really_better_than_the_base_at_their_task() -> None:
    scores = demo_tasks.demo_suite().evaluate(demo_tasks.base_folder(), tasks=["spam", "reviews"])
    for name in ("spam", "reviews"):
        about, task = demo_tasks.settings()["tasks"][name], scores[name]
        assert task.count == about["sizes"]["test"]
        assert task.score == pytest.approx(about["base_test_accuracy"], abs=0.02)
        assert task.expert == pytest.approx(about["expert_test_accuracy"], abs=0.02)
    assert scores["spam"].expert > scores["spam"].score + 0.1


def test_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(demo_tasks, "find_spec", lambda _: spec)
    with pytest.raises(CheckpointError, match="not the model that the demo's experts"):
        demo_tasks.base_folder()
    monkeypatch.setattr(demo_tasks, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"magmerge\[demo\]"):
        demo_tasks.base_folder()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve texts a task: the whole path in seconds."""
    assets = tmp_path / "assets"
    shutil.copytree(demo_tasks.ASSETS, assets)
    for file in (assets / "data").iterdir():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        tests = [line for line in lines if json.loads(line)["split"] == "test"][:12]
        others = [line for line in lines if json.loads(line)["split"] != "test"]
        file.write_text("".join(tests + others), encoding="utf-8")
    monkeypatch.setattr(demo_tasks, "ASSETS", assets)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_demo_merges_measures_and_writes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found: Demo = magmerge.demo(tmp_path / "out", progress=lambda *call: seen.append(call))
    assert [row.model for row in found.rows] == [
        "base", "experts", "task_arithmetic", "task_arithmetic + wsc", "task_arithmetic + fsc",
        "task_arithmetic + dsc", "ties", "ties + dsc", "tsv_m", "tsv_m + dsc",
    ]  # fmt: skip
    assert set(found.sizes) == {12}
    assert all(len(row.accuracies) == len(found.tasks) >= 6 for row in found.rows)
    base, experts = found.rows[0], found.rows[1]
    assert experts.average > base.average
    from transformers import AutoModel

    state = AutoModel.from_pretrained(found.path).state_dict()
    assert torch.equal(
        state["encoder.layer.0.attention.self.query.weight"],
        magmerge.open_checkpoint(found.path).read("encoder.layer.0.attention.self.query.weight"),
    )
    assert seen[-1][1] == seen[-1][2] == 60
    assert found.report == found.path / "report.html"
    assert "task_arithmetic + fsc" in found.report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("small")
def test_a_demo_of_two_tasks_and_one_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = demo_tasks.settings()
    tasks = {name: about["tasks"][name] for name in ("spam", "reviews")}
    for module in (demo_tasks, demonstration):
        monkeypatch.setattr(module, "settings", lambda: {**about, "tasks": tasks})
    monkeypatch.setattr(demonstration, "VARIANTS", (("task_arithmetic", (None, "dsc")),))
    found = magmerge.demo(tmp_path / "out", threads=1)
    rows = {row.model: row for row in found.rows}
    assert list(rows) == ["base", "experts", "task_arithmetic", "task_arithmetic + dsc"]
    assert (found.tasks, found.sizes) == (("spam", "reviews"), (12, 12))
    assert rows["experts"].average > rows["base"].average
    assert rows["task_arithmetic + dsc"].xi is not None
    assert found.path == tmp_path / "out"
    assert "task_arithmetic + dsc" in found.report.read_text(encoding="utf-8")
