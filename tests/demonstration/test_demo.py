"""The demo's assets are whole and true, and the demo says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.core.errors import CheckpointError
from magmerge.studies.demo import Demo, encoder, front, tasks

LARGEST = 15_000_000


def test_assets_are_small_and_licensed() -> None:
    files = [path for path in tasks.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    licences = (tasks.ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    about = tasks.settings()["tasks"]
    assert len(about) >= 6
    for name, task in about.items():
        assert task["licence"], name
        assert name in licences, name


def test_no_text_is_in_two_splits_and_no_address_in_any() -> None:
    for file in (tasks.ASSETS / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        texts = [" ".join(row["text"].lower().split()) for row in rows]
        assert len(set(texts)) == len(texts), file.name
        assert not any("@" in text and ".com" in text for text in texts), file.name
        assert {row["split"] for row in rows} == {"test", "validation", "calibration"}
        assert all(("label" in row) == (row["split"] != "calibration") for row in rows)


def test_tasks_have_texts_labels_and_heads_that_fit() -> None:
    for task in tasks.load_tasks():
        assert len(task.texts) == len(task.labels) >= 200
        assert set(task.labels) == set(range(len(task.head)))
        assert torch.allclose(task.head.norm(dim=-1), torch.ones(len(task.head)), atol=1e-4)
        assert task.expert.is_dir()


def test_experts_are_really_better_than_the_base_at_their_task() -> None:
    task = next(task for task in tasks.load_tasks() if task.name == "spam")
    model = encoder.Encoder(tasks.base_folder(), [task])
    before = model.accuracy(task)
    expert = magmerge.merge(base=tasks.base_folder(), experts=[task.expert], method="average")
    model.load(expert.state_dict())
    after = model.accuracy(task)
    about = tasks.settings()["tasks"]["spam"]
    assert before == pytest.approx(about["base_test_accuracy"], abs=0.02)
    assert after == pytest.approx(about["expert_test_accuracy"], abs=0.02)
    assert after > before + 0.1


def test_incomplete_weights_are_refused() -> None:
    task = tasks.load_tasks()[0]
    model = encoder.Encoder(tasks.base_folder(), [task])
    with pytest.raises(magmerge.MagmergeError, match="is not in"):
        model.load({})


def test_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(tasks, "find_spec", lambda _: spec)
    with pytest.raises(CheckpointError, match="not the model that the demo's experts"):
        tasks.base_folder()
    monkeypatch.setattr(tasks, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"magmerge\[demo\]"):
        tasks.base_folder()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve texts a task: the whole path in seconds."""
    load = tasks.load_tasks

    def few() -> list[tasks.Task]:
        return [
            tasks.Task(t.name, t.title, t.texts[:12], t.labels[:12], t.head, t.expert)
            for t in load()
        ]

    monkeypatch.setattr(front, "load_tasks", few)


@pytest.mark.usefixtures("small")
def test_the_demo_merges_measures_and_writes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found: Demo = magmerge.demo(tmp_path / "out", progress=lambda *call: seen.append(call))
    assert [row.model for row in found.rows] == [
        "base", "experts", "task_arithmetic", "task_arithmetic + wsc", "task_arithmetic + fsc",
        "task_arithmetic + dsc", "ties", "ties + dsc", "tsv_m", "tsv_m + dsc",
    ]  # fmt: skip
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
