"""What a run has found so far, in one file that it goes on from, and the folder of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from magmerge.digests import DigestMemory
from magmerge.errors import OutputError
from magmerge.evaluation.scores import TaskScore
from magmerge.reproduction.models import Models
from magmerge.reproduction.pipelines import find_pipeline, pipeline_names
from magmerge.reproduction.request import Request
from magmerge.version import __version__
from magmerge.whole_file import replace_whole

NAME = "results.json"
SMALL = ("*.json", "*.txt", "*.model")
"""Files beside the base's weights that decide what a model makes of texts and images."""
KEPT = ("score", "low", "high", "count", "metric", "seconds")


class Cell(BaseModel):
    """One model on one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    count: int
    metric: str
    seconds: FiniteFloat


class Ledger:
    """Scores by model and task. Every score is on disk as soon as it is known."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.cells: dict[str, dict[str, Cell]] = {}
        self.sensitive: tuple[str, ...] | None = None
        self.said: list[str] = []

    @classmethod
    def opened(cls, folder: Path, settings: Mapping[str, Any], *, anew: bool) -> Ledger:
        """The run's file in `folder`, or a new one; OutputError where it is of another run."""
        ledger = cls(folder / NAME, settings)
        if anew or not ledger.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            ledger.save()
            return ledger
        content = _read(ledger.path)
        found = content["settings"]
        differing = [key for key in settings if found.get(key) != ledger._plain()[key]]
        if differing:
            raise OutputError(
                f"it holds a run with other settings: {', '.join(differing)}",
                source=ledger.path,
                remedy="name another folder, or start anew with --yes (overwrite=True)",
            )
        for model, row in content["cells"].items():
            ledger.cells[model] = {task: Cell.model_validate(cell) for task, cell in row.items()}
        sensitive = content["sensitive"]
        ledger.sensitive = None if sensitive is None else tuple(map(str, sensitive))
        ledger.said = list(map(str, content["warnings"]))
        return ledger

    def lacking(self, model: str, tasks: Sequence[str]) -> list[str]:
        """The tasks that a model has no score of."""
        return [task for task in tasks if task not in self.cells.get(model, {})]

    def put_all(self, found: Mapping[str, Mapping[str, TaskScore]]) -> None:
        """Keep scores by model and task."""
        for model, row in found.items():
            for task, score in row.items():
                cell = Cell.model_validate({key: asdict(score)[key] for key in KEPT})
                self.cells.setdefault(model, {})[task] = cell
        self.save()

    def say(self, warnings: Sequence[str]) -> None:
        """Keep what a reader should know, once."""
        self.said = list(dict.fromkeys([*self.said, *warnings]))
        self.save()

    def save(self) -> None:
        """Write what is known, in one step."""
        replace_whole(self.path, json.dumps(self.document(), indent=1) + "\n")

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        cells = {
            model: {task: cell.model_dump() for task, cell in row.items()}
            for model, row in self.cells.items()
        }
        return {
            "magmerge": __version__,
            "settings": self._plain(),
            "sensitive": None if self.sensitive is None else list(self.sensitive),
            "warnings": self.said,
            "cells": cells,
        }

    def _plain(self) -> dict[str, Any]:
        """The settings as JSON gives them back."""
        plain: dict[str, Any] = json.loads(json.dumps(self.settings))
        return plain


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for row in content["cells"].values():
            for cell in row.values():
                Cell.model_validate(cell)
        if not isinstance(content["settings"], dict):
            raise TypeError("its settings are no mapping")
        if not isinstance(content["sensitive"], list | None):
            raise TypeError("its sensitive layers are no list")
        if not isinstance(content["warnings"], list):
            raise TypeError("its warnings are no list")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"it is no sound file of results: {str(error).partition(chr(10))[0]}",
            source=path,
            remedy="remove it, or start anew with --yes (overwrite=True)",
        ) from error
    return content


def models_measured(folder: Path) -> frozenset[str]:
    """The models of which a run knows any score; none where there is no run."""
    try:
        return frozenset(_read(folder / NAME)["cells"])
    except OutputError:
        return frozenset()


def check_place(request: Request) -> None:
    """OutputError where the folder holds other things, or models and data are in its way."""
    folder = request.folder.resolve()
    for given in (request.inputs, request.data):
        if given is not None and _overlap(given.resolve(), folder):
            raise OutputError(
                f"it lies together with {given}, and files there might be replaced",
                source=request.folder,
                remedy="name an output folder of its own",
            )
    if folder.is_file():
        raise OutputError("it is a file", source=request.folder, remedy="name a folder")
    own = _is_ledger(folder / NAME)
    if folder.is_dir() and any(folder.iterdir()) and not own:
        raise OutputError(
            f"it holds other things and no {NAME} of magmerge's, so nothing is written there",
            source=request.folder,
            remedy="name a new or an empty folder",
        )


def settings_of(request: Request, models: Models) -> dict[str, Any]:
    """All that scores depend on: a run with other settings is another run."""
    memory = DigestMemory()
    weights = {
        role: sorted(memory.digest(file) for file in _weights(path))
        for role, path in {"base": models.base, **models.experts}.items()
    }
    beside = sorted(file for pattern in SMALL for file in models.base.glob(pattern))
    small = [[file.name, memory.digest(file)] for file in beside]
    memory.save()
    data = None
    if request.data is not None:
        data = {task: _listing(request.data, task) for task in request.tasks}
    pipeline: Any = request.pipeline
    if pipeline.name in pipeline_names() and pipeline == find_pipeline(pipeline.name):
        pipeline = pipeline.name
    else:
        pipeline = pipeline.model_dump(mode="json", exclude={"title", "published"})
    return {
        "pipeline": pipeline,
        "tasks": list(request.tasks),
        "samples": request.samples,
        "alpha": request.alpha,
        "generic": request.generic,
        "generic_samples": request.generic_samples,
        "params": {method: dict(values) for method, values in request.params.items()},
        "dtype": request.machine.dtype or "float32",
        "data": data,
        "inputs": weights,
        "base_files": small,
    }


def _listing(data: Path, task: str) -> str:
    """A digest of names, sizes and times of all files of a task, or of all files there."""
    place = data / task if (data / task).is_dir() else data
    lines = []
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        found = file.stat()
        lines.append(f"{file.relative_to(place)} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _is_ledger(path: Path) -> bool:
    """Whether a file is a run's, and not one of the same name that somebody else wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"magmerge", "settings", "cells"} <= set(content)
