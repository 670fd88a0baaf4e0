"""What a run has found so far, in one file that it goes on from, and the folder of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from magmerge.checkpoints.digests import DigestMemory
from magmerge.core.errors import OutputError
from magmerge.core.version import __version__
from magmerge.core.whole_file import replace_whole
from magmerge.evaluation.scores import TaskScore
from magmerge.studies.reproduction.pipeline_models import PipelineModels
from magmerge.studies.reproduction.pipelines import find_pipeline, pipeline_names
from magmerge.studies.reproduction.run_spec import RunSpec

NAME = "results.json"
SMALL = ("*.json", "*.txt", "*.model")
"""Files beside the base's weights that decide what a model makes of texts and images."""


class ScoreCell(BaseModel):
    """One model on one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    count: int
    metric: str
    seconds: FiniteFloat


class Results(BaseModel):
    """What the file of a run holds: scores by model and task, and all that they depend on."""

    magmerge: str = __version__
    settings: dict[str, Any]
    sensitive: tuple[str, ...] | None = None
    warnings: list[str] = Field(default_factory=list)
    cells: dict[str, dict[str, ScoreCell]] = Field(default_factory=dict)


class RunScores:
    """The results of a run. Every score is on disk as soon as it is known."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        # As JSON gives them back.
        self.path, self.results = path, Results(settings=json.loads(json.dumps(settings)))

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], *, anew: bool) -> RunScores:
        """The run's file in `folder`, or a new one; OutputError where it is of another run."""
        ledger = cls(folder / NAME, settings)
        if anew or not ledger.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            ledger.save()
            return ledger
        own, known = ledger.results.settings, _read(ledger.path)
        differing = [key for key in own if known.settings.get(key) != own[key]]
        if differing:
            raise OutputError(
                f"it holds a run with other settings: {', '.join(differing)}",
                source=ledger.path,
                remedy="name another folder, or start anew with --yes (overwrite=True)",
            )
        ledger.results = known
        return ledger

    def missing(self, model: str, tasks: Sequence[str]) -> list[str]:
        """The tasks that a model has no score of."""
        return [task for task in tasks if task not in self.results.cells.get(model, {})]

    def put_all(self, scores: Mapping[str, Mapping[str, TaskScore]]) -> None:
        """Keep scores by model and task."""
        for model, row in scores.items():
            for task, score in row.items():
                cell = ScoreCell(**{key: getattr(score, key) for key in ScoreCell.model_fields})
                self.results.cells.setdefault(model, {})[task] = cell
        self.save()

    def say(self, warnings: Sequence[str]) -> None:
        """Keep what a reader should know, once."""
        self.results.warnings = list(dict.fromkeys([*self.results.warnings, *warnings]))
        self.save()

    def save(self) -> None:
        """Write what is known, in one step."""
        replace_whole(self.path, self.results.model_dump_json(indent=1) + "\n")


def _read(path: Path) -> Results:
    try:
        return Results.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"it is no sound file of results: {str(error).partition(chr(10))[0]}",
            source=path,
            remedy="remove it, or start anew with --yes (overwrite=True)",
        ) from error


def scored_models(folder: Path) -> frozenset[str]:
    """The models of which a run knows any score; none where there is no run."""
    try:
        return frozenset(_read(folder / NAME).cells)
    except OutputError:
        return frozenset()


def check_place(request: RunSpec) -> None:
    """OutputError where the folder holds other things, or models and data are in its way."""
    folder = request.folder.resolve()
    for source in (request.inputs, request.data):
        if source is not None and _overlap(source.resolve(), folder):
            raise OutputError(
                f"it lies together with {source}, and files there might be replaced",
                source=request.folder,
                remedy="name an output folder of its own",
            )
    if folder.is_file():
        raise OutputError("it is a file", source=request.folder, remedy="name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ledger(folder / NAME):
        raise OutputError(
            f"it holds other things and no {NAME} of magmerge's, so nothing is written there",
            source=request.folder,
            remedy="name a new or an empty folder",
        )


def settings_of(request: RunSpec, models: PipelineModels) -> dict[str, Any]:
    """All that scores depend on: a run with other settings is another run."""
    memory = DigestMemory()
    weights = {
        role: sorted(memory.digest(file) for file in _weights(path))
        for role, path in {"base": models.base, **models.experts}.items()
    }
    beside = sorted(file for pattern in SMALL for file in models.base.glob(pattern))
    small = [[file.name, memory.digest(file)] for file in beside]
    memory.save()
    place, options = request.data, request.options
    data = place and {task: _listing(place, task) for task in request.tasks}
    pipeline: Any = request.pipeline
    if pipeline.name in pipeline_names() and pipeline == find_pipeline(pipeline.name):
        pipeline = pipeline.name
    else:
        pipeline = pipeline.model_dump(mode="json", exclude={"title", "published"})
    return {
        "pipeline": pipeline,
        "tasks": list(request.tasks),
        "samples": options.samples,
        "alpha": options.alpha,
        "generic": None if options.generic is None else str(options.generic),
        "generic_samples": request.generic_samples,
        "params": {method: dict(values) for method, values in request.params.items()},
        "dtype": request.hardware.dtype or "float32",
        "data": data,
        "inputs": weights,
        "base_files": small,
    }


def _listing(data: Path, task: str) -> str:
    """A digest of names, sizes and times of all files of a task, or of all files there."""
    place = data / task if (data / task).is_dir() else data
    lines = []
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        state = file.stat()
        lines.append(f"{file.relative_to(place)} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))


def _overlap(path: Path, other: Path) -> bool:
    return path == other or path in other.parents or other in path.parents


def _is_ledger(path: Path) -> bool:
    """Whether a file is a run's, and not one of the same name that somebody else wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"magmerge", "settings", "cells"} <= set(content)
