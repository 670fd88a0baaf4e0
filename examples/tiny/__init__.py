"""Small generated models and data in the layouts of published ones, to try a pipeline on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from examples.tiny.clip import Lesson, pretrain, tune_vision, write_clip
from examples.tiny.encoders import tune_classifier, write_language_model
from examples.tiny.images import ROWS as IMAGES
from examples.tiny.images import draw_images
from examples.tiny.language import HARNESS, TESTED, skill_entry, write_skills
from examples.tiny.words import ROWS, as_rows, draw_texts

from magmerge.data.inputs import prepare
from magmerge.data.rows import Preparation, SampleDraw
from magmerge.data.sources import read_samples
from magmerge.evaluation.suites.definitions import ImageTask, TextTask, task
from magmerge.evaluation.suites.zero_shot import ZeroShot
from magmerge.studies.reproduction.pipelines import Pipeline, find_pipeline

CLASSES = 4
"""Classes of a task that images are generated of."""
GENERIC = "cifar100"
FAMILIES = {"bert": "bert", "glue": "roberta"}
TEXTS = "generic.txt"
ROWS_OF = {"vision": CLASSES * IMAGES["test"], "text": ROWS["test"], "language": TESTED}


def write_tiny(name: str, folder: Path, tasks: Sequence[str] | None = None) -> Path:
    """Write models to FOLDER/inputs, data to FOLDER/data, and the pipeline file FOLDER/NAME.yaml.

    Returns the pipeline file, which `magmerge reproduce` takes in place of the pipeline's name.
    """
    pipeline = find_pipeline(name)
    names = tuple(one for one in pipeline.experts if tasks is None or one in tasks)
    base = folder / "inputs" / pipeline.base.rpartition("/")[2]
    data = folder / "data"
    makers: Mapping[str, Callable[..., None]] = {
        "vision": _images,
        "text": _texts,
        "language": _skills,
    }
    makers[pipeline.kind](pipeline, names, base, data)
    size = next(base.glob("*.safetensors")).stat().st_size / 10**9
    experts = {
        one: entry.model_copy(update={"rows": ROWS_OF[pipeline.kind]})
        for one, entry in pipeline.experts.items()
    }
    changed: dict[str, Any] = {"base_gb": size, "expert_gb": size, "experts": experts}
    changed["generic"] = pipeline.generic.model_copy(update={"samples": 64})
    if pipeline.kind != "vision":
        generic = {"source": f"data/{TEXTS}", "split": None, "samples": 64}
        changed["generic"] = pipeline.generic.model_copy(update=generic)
    if pipeline.kind == "language":
        changed["experts"] = {one: skill_entry(one, entry) for one, entry in experts.items()}
        changed["include"] = f"data/{HARNESS}"
    small = pipeline.model_copy(update={**changed, "tiny": True})
    file = folder / f"{name}.yaml"
    content = small.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def _images(pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path) -> None:
    write_clip(base, seed=0)
    heads = ZeroShot(base, cache=data.parent / "heads")
    names = (GENERIC, *tasks)
    lessons = {name: _lesson(name, base, data, heads, seed) for seed, name in enumerate(names)}
    pretrain(base, list(lessons.values()))
    for name in tasks:
        tune_vision(base, _expert(pipeline, name, base), lessons[name])


def _lesson(name: str, base: Path, data: Path, heads: ZeroShot, seed: int) -> Lesson:
    """A task's images, drawn into its folder, with its zero-shot head."""
    found = task("vision", name)
    assert isinstance(found, ImageTask)
    folders = [one.replace("/", " ") for one in (found.folders or found.classes)[:CLASSES]]
    draw_images(data / name, name, folders, seed)
    rows = read_samples(
        data / name / "train", SampleDraw(name=name, samples=None, label_field="label")
    )
    (inputs,) = prepare(rows, base, Preparation(), batch=len(rows))
    labels = torch.tensor([folders.index(str(label)) for label in rows.labels or ()])
    return Lesson(inputs.kwargs["pixel_values"], labels, heads.head(found)["weight"], seed)


def _texts(pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path) -> None:
    write_language_model(base, FAMILIES[pipeline.name], seed=0)
    _generic_texts(data / TEXTS)
    for name in tasks:
        found = task("text", name)
        assert isinstance(found, TextTask)
        labels: list[Any] = list(found.classes) or [float(score) for score in range(6)]
        for seed, (split, count) in enumerate(ROWS.items()):
            texts = draw_texts(name, len(labels), count, seed)
            rows = as_rows(texts, found.text, found.pair, labels)
            file = data / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            if split == "train":
                seen = [(_seen(row, found), float(labels.index(row["label"]))) for row in rows]
                classes = list(found.classes) or None
                tune_classifier(base, _expert(pipeline, name, base), seen, classes)


def _skills(pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path) -> None:
    _generic_texts(data / TEXTS)
    write_skills(base, {name: _expert(pipeline, name, base) for name in tasks}, data)


def _seen(row: Mapping[str, Any], found: TextTask) -> Any:
    """A row as the tokenizer takes it: its text, or both."""
    return row[found.text] if found.pair is None else (row[found.text], row[found.pair])


def _generic_texts(file: Path) -> None:
    """Texts of no task."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _ in draw_texts("generic", 1, ROWS["train"], seed=0)]
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def _expert(pipeline: Pipeline, name: str, base: Path) -> Path:
    """Where the expert of a task lies: by its name on the hub, or by its task's."""
    hub = pipeline.experts[name].hub
    return base.parent / (name if hub is None else hub.rpartition("/")[2])
