"""The same path in small: generated models and data in the layouts of the published ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from magmerge.checkpoints.own_files import check_replaceable, files_in
from magmerge.errors import OutputError
from magmerge.machine import Progress
from magmerge.reproduction.asked import Asked
from magmerge.reproduction.ledger import NAME
from magmerge.reproduction.pipelines import Pipeline
from magmerge.reproduction.places import MARK, TINY
from magmerge.reproduction.tiny_clip import Lesson, pretrain, tune_vision, write_clip
from magmerge.reproduction.tiny_encoders import tune_classifier, write_language_model
from magmerge.reproduction.tiny_images import ROWS as IMAGES
from magmerge.reproduction.tiny_images import draw_images
from magmerge.reproduction.tiny_language import HARNESS, TESTED, skill_entry, write_skills
from magmerge.reproduction.tiny_words import ROWS, as_rows, draw_texts
from magmerge.samples import Preparation, prepare, read_samples
from magmerge.suites.definitions import ImageTask, TextTask, task
from magmerge.suites.zero_shot import ZeroShot

CLASSES = 4
"""Classes of a task that images are generated of."""
GENERIC = "cifar100"
FAMILIES = {"bert": "bert", "glue": "roberta"}
TEXTS = "generic.txt"
UNFINISHED = {"magmerge": "unfinished"}


def made_tiny(asked: Asked, progress: Progress | None, *, anew: bool) -> Asked:
    """Models and data in the run's folder, written unless they are there, in place of real ones.

    OutputError where they are another run's, which `anew` gives up.
    """
    folder, pipeline = asked.folder / TINY, asked.pipeline
    inputs, data = folder / "inputs", folder / "data"
    made = {"pipeline": pipeline.name, "tasks": list(asked.tasks)}
    known = _made(folder)
    if {key: known.get(key) for key in made} != made:
        if (asked.folder / NAME).exists() and not anew:
            raise OutputError(
                "it holds a run with other settings: pipeline or tasks",
                source=asked.folder,
                remedy="name another folder, or start anew with --yes (overwrite=True)",
            )
        if folder.is_dir() and known != UNFINISHED:
            check_replaceable(folder, {MARK, *known.get("files", ())})
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # From the first moment on, so that a run that was stopped here can be begun anew.
        (folder / MARK).write_text(json.dumps(UNFINISHED))
        base = inputs / pipeline.base.rpartition("/")[2]
        makers: Mapping[str, Callable[..., None]] = {
            "vision": _images,
            "text": _texts,
            "language": _skills,
        }
        makers[pipeline.kind](pipeline, asked.tasks, base, data, progress)
        (folder / MARK).write_text(json.dumps({**made, "files": sorted(files_in(folder))}))
    generic = asked.generic if pipeline.kind == "vision" else str(data / TEXTS)
    sized = pipeline.model_copy(update=_sizes(pipeline, inputs, data))
    include = data / HARNESS if pipeline.kind == "language" else None
    return replace(
        asked, pipeline=sized, inputs=inputs, data=data, generic=generic, generic_samples=64,
        include=include,
    )  # fmt: skip


def _sizes(pipeline: Pipeline, inputs: Path, data: Path) -> dict[str, Any]:
    """What an estimate must know of small models and data."""
    base = next(inputs.glob(f"{pipeline.base.rpartition('/')[2]}/*.safetensors"))
    counts = {"vision": CLASSES * IMAGES["test"], "text": ROWS["test"], "language": TESTED}
    rows = counts[pipeline.kind]
    size = base.stat().st_size / 10**9
    entries = {
        name: entry.model_copy(update={"rows": rows}) for name, entry in pipeline.experts.items()
    }
    if pipeline.kind == "language":
        entries = {name: skill_entry(name, entry, data) for name, entry in entries.items()}
    return {"base_gb": size, "expert_gb": size, "experts": entries}


def _made(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _images(
    pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path, progress: Progress | None
) -> None:
    write_clip(base, seed=0)
    heads = ZeroShot(base, cache=base.parent.parent / "heads")
    names = (GENERIC, *tasks)
    lessons = {name: _lesson(name, base, data, heads, seed) for seed, name in enumerate(names)}
    pretrain(base, list(lessons.values()))
    for number, name in enumerate(tasks, start=1):
        tune_vision(base, _expert(pipeline, name, base), lessons[name])
        if progress is not None:
            progress("making small experts", number, len(tasks))


def _lesson(name: str, base: Path, data: Path, heads: ZeroShot, seed: int) -> Lesson:
    """A task's images, drawn into its folder, with its zero-shot head."""
    found = task("vision", name)
    assert isinstance(found, ImageTask)
    folders = [one.replace("/", " ") for one in (found.folders or found.classes)[:CLASSES]]
    draw_images(data / name, name, folders, seed)
    rows = read_samples(data / name / "train", name=name, samples=None, label_field="label")
    (inputs,) = prepare(rows, base, Preparation(), batch=len(rows))
    labels = torch.tensor([folders.index(str(label)) for label in rows.labels or ()])
    return Lesson(inputs.kwargs["pixel_values"], labels, heads.head(found)["weight"], seed)


def _texts(
    pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path, progress: Progress | None
) -> None:
    write_language_model(base, FAMILIES[pipeline.name], seed=0)
    _generic_texts(data / TEXTS)
    for number, name in enumerate(tasks):
        found = task("text", name)
        assert isinstance(found, TextTask)
        labels: list[Any] = list(found.classes) or [float(score) for score in range(6)]
        for seed, (split, count) in enumerate(ROWS.items()):
            rows = as_rows(
                draw_texts(name, len(labels), count, seed), found.text, found.pair, labels
            )
            file = data / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            if split == "train":
                seen = [(_seen(row, found), float(labels.index(row["label"]))) for row in rows]
                classes = list(found.classes) or None
                tune_classifier(base, _expert(pipeline, name, base), seen, classes)
        if progress is not None:
            progress("making small experts", number + 1, len(tasks))


def _skills(
    pipeline: Pipeline, tasks: tuple[str, ...], base: Path, data: Path, progress: Progress | None
) -> None:
    _generic_texts(data / TEXTS)
    write_skills(base, {name: _expert(pipeline, name, base) for name in tasks}, data, progress)


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


MAKERS: Mapping[str, Callable[..., None]] = {
    "vision": _images,
    "text": _texts,
    "language": _skills,
}
