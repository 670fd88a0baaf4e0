"""suite(): a named suite as a folder that `magmerge evaluate` takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.core.machine import Machine, Progress
from magmerge.data.pixels import PROCESSOR
from magmerge.evaluation.entries import Features
from magmerge.evaluation.suites.classifiers import cut_head
from magmerge.evaluation.suites.definitions import (
    Definition,
    ImageTask,
    SuiteTask,
    TextTask,
    chosen,
    definition,
    task_name,
)
from magmerge.evaluation.suites.folders import SAVED, Local, local_data
from magmerge.evaluation.suites.leaks import leaked
from magmerge.evaluation.suites.suite_folder import (
    HEADS,
    check_out,
    suite_folder,
    write_heads,
    write_list,
    write_suite,
)
from magmerge.evaluation.suites.zero_shot import PROJECTION, ZeroShot


@dataclass(frozen=True, slots=True)
class NamedTask:
    """An entry of the suite that was written.

    `classes` is their number, 0 for a regression; `data` the source of each split; `origin` what
    the data is: hub data, or what was found in the local folder.
    """

    name: str
    title: str
    metric: str
    classes: int
    origin: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NamedSuite:
    """A folder with a suite file, its heads, and what a reader should know of it.

    `built` heads were made anew, the others were known.
    """

    name: str
    path: Path
    tasks: tuple[NamedTask, ...]
    built: int
    warnings: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The suite file, for `magmerge evaluate --suite`."""
        return self.path / "suite.yaml"

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        return {
            "suite": self.name,
            "file": str(self.file),
            "heads_built": self.built,
            "tasks": [{**asdict(task), "data": dict(task.data)} for task in self.tasks],
            "warnings": list(self.warnings),
        }


Projection = Literal["model", "base"]
Heads = dict[str, dict[str, Tensor]]
LONGEST = 128
"""Tokens of a text, at most, as in the published runs on GLUE."""


class SuiteHeads(NamedTuple):
    """Heads, the model that they go on, how many were built, and what a reader should know.

    `experts` are those that the suite names to compare with.
    """

    tensors: Heads
    model: dict[str, str]
    built: int
    notes: list[str]
    experts: Mapping[str, Path]


def suite(
    name: str,
    out: str | Path,
    *,
    base: str | Path,
    data: str | Path | None = None,
    tasks: Iterable[str] | None = None,
    experts: Mapping[str, str | Path] | None = None,
    projection: Projection = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> NamedSuite:
    """Write the suite `name` to the folder `out`: suite.yaml, and a head for each task.

    `base` is a folder of transformers: of vision suites a whole CLIP, whose text encoder makes the
    zero-shot heads; of text suites the encoder that the experts were tuned from. `data` is a local
    folder with a folder for each task; without it the data comes from the hub when the suite is
    used. `tasks` are some of the suite's. `experts` by task are compared with; text suites need
    them, as their heads are cut out of them. With `projection="base"` the heads hold the base's
    visual projection, for experts that are bare vision encoders. Warns of what is doubtful. Raises
    MagmergeError's children.
    """
    known = definition(name)
    parts, folder, base = chosen(known, tasks), Path(out), Path(base).expanduser()
    check_out(folder, overwrite=overwrite)
    if not base.is_dir():
        raise ParameterError("the base is no folder", source=base, remedy="check --base (base=)")
    if projection not in ("model", "base"):
        raise ParameterError(
            f"projection is {projection!r}", remedy="say model or base, and base for vision suites"
        )
    paths, local = _experts(known, parts, experts or {}), {}
    if data is not None:
        root = Path(data).expanduser()
        local = {key: local_data(key, task, root) for key, task in parts.items()}
    if known.kind == "vision":
        heads = _vision(parts, base, paths, projection, Machine(progress=progress))
    else:
        heads = _text(parts, paths)
    notes: list[str] = []
    for key, task in parts.items():
        notes += [f"{key}: {task.note}"] if task.note is not None and key not in local else []
        reason = leaked(key, paths[key]) if key in paths else None
        notes += [] if reason is None else [reason]
    notes += heads.notes
    content: dict[str, Any] = {"suite": name, "base": os.path.realpath(base), "model": heads.model}
    if known.kind == "text":
        content["max_length"] = LONGEST
    with suite_folder(folder, overwrite=overwrite) as place:
        write_heads(place, heads.tensors)
        entries, listed = _entries(parts, local, heads, place)
        write_suite(place, {**content, "tasks": entries})
    for note in notes:
        warnings.warn(note, MagmergeWarning, stacklevel=2)
    return NamedSuite(name, folder, tuple(listed), heads.built, tuple(notes))


def _experts(
    suite: Definition, tasks: Mapping[str, SuiteTask], paths: Mapping[str, str | Path]
) -> dict[str, Path]:
    """The experts by the suite's own names of the tasks; each exists."""
    result = {}
    for name, expert in paths.items():
        own, path = task_name(suite, name), Path(expert).expanduser()
        if own not in tasks:
            raise ParameterError(
                f"the expert of {own} is given, and that task is not among those chosen",
                source=path,
                remedy=f"add --task {own}, or leave the expert out",
            )
        if own in result:
            raise ParameterError(
                f"the task {own} has two experts", source=path, remedy="give one for each task"
            )
        if not path.exists():
            raise ParameterError(
                "there is no such file or folder",
                source=path,
                remedy="check the path; download checkpoints of the hub first",
            )
        result[own] = path
    return result


def _vision(
    tasks: Mapping[str, SuiteTask],
    base: Path,
    experts: Mapping[str, Path],
    projection: Projection,
    machine: Machine,
) -> SuiteHeads:
    """Zero-shot heads on the image embeddings, or on the pooled output of a bare encoder."""
    if not (base / PROCESSOR).is_file():
        raise ParameterError(
            f"there is no {PROCESSOR}",
            source=base,
            remedy="put the CLIP's own there: images are prepared as it says",
        )
    maker = ZeroShot(base, machine, projected=projection == "base")
    for expert in experts.values() if projection == "model" else ():
        names = open_checkpoint(expert).specs
        # transformers' bare vision encoder, and the heads go on the projection.
        if PROJECTION not in names and any("pre_layrnorm" in name for name in names):
            raise ParameterError(
                f"it is a vision encoder without {PROJECTION}",
                source=expert,
                remedy="add --projection base (projection='base'), which takes the base's",
            )
    heads = {name: maker.head(task) for name, task in tasks.items() if isinstance(task, ImageTask)}
    model = {"class": "CLIPVisionModelWithProjection", "features": "embeds"}
    if projection == "base":
        model = {"class": "CLIPVisionModel", "features": "pooler"}
    return SuiteHeads(heads, model, maker.built, [], experts)


def _text(tasks: Mapping[str, SuiteTask], experts: Mapping[str, Path]) -> SuiteHeads:
    """Heads cut out of the experts, all on the same part of the encoder's output."""
    heads: Heads = {}
    notes: list[str] = []
    kinds: dict[Features, str] = {}
    measured = {}
    for name, task in tasks.items():
        if name not in experts:
            raise ParameterError(
                f"the task {name} has no head: its expert is not given",
                remedy=f"add --expert {name}=FOLDER (experts=), or leave the task out with --task",
            )
        assert isinstance(task, TextTask)
        cut = cut_head(name, task, experts[name])
        heads[name], kinds[cut.features] = cut.tensors, name
        notes += [] if cut.note is None else [cut.note]
        if cut.whole:
            measured[name] = experts[name]
        else:
            notes.append(
                f"{experts[name]} has no pooler, so its own score on {name} is not measured; merge "
                "it with a base that has one, and its encoder is"
            )
    if len(kinds) > 1:
        raise ParameterError(
            f"the experts of {' and '.join(kinds.values())} are of different families",
            remedy="make a suite for each family of encoders",
        )
    return SuiteHeads(
        heads, {"class": "AutoModel", "features": next(iter(kinds))}, 0, notes, measured
    )


def _entries(
    tasks: Mapping[str, SuiteTask], local: Mapping[str, Local], heads: SuiteHeads, place: Path
) -> tuple[dict[str, dict[str, Any]], list[NamedTask]]:
    """The suite file's tasks, an entry for each metric, and what they are for people."""
    entries, listed = {}, []
    for name, task in tasks.items():
        data = {split: task.source(split) for split in task.splits}
        origin, classes = f"hub: {task.hub}", task.classes
        if name in local:
            result = local[name]
            data = {split: os.path.realpath(path) for split, path in result.sources.items()}
            data |= {
                split: write_list(place, name, split, rows) for split, rows in result.lists.items()
            }
            origin, classes = result.kind, result.classes
        head = f"{HEADS}/{name}.safetensors"
        shared: dict[str, Any] = {"title": task.title, "data": data, "head": head}
        if classes:
            shared["classes"] = list(classes)
        shared |= _columns(task, local.get(name))
        if name in heads.experts:
            shared["expert"] = os.path.realpath(heads.experts[name])
        metrics = task.metrics if isinstance(task, TextTask) else ("accuracy",)
        for number, metric in enumerate(metrics):
            entry = name if number == 0 else f"{name}-{metric}"
            entries[entry] = {**shared, "metric": metric}
            listed.append(NamedTask(entry, task.title, metric, len(classes), origin, data))
    return entries, listed


def _columns(task: SuiteTask, local: Local | None) -> dict[str, str]:
    """The columns of the data; local images have an image and a label, but for saved data sets."""
    if isinstance(task, TextTask):
        pair = {} if task.pair is None else {"pair_field": task.pair}
        return {"text_field": task.text, **pair, "label_field": task.label}
    if isinstance(task, ImageTask) and (local is None or local.kind == SAVED):
        return {"text_field": task.image, "label_field": task.label}
    return {}
