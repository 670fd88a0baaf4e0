"""What a run has found so far, in one file that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from magmerge.errors import OutputError
from magmerge.evaluation.scores import TaskScore
from magmerge.version import __version__
from magmerge.whole_file import replace_whole

NAME = "results.json"
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

    def has(self, model: str, task: str) -> bool:
        """Whether a score is known."""
        return task in self.cells.get(model, {})

    def put(self, model: str, task: str, score: TaskScore) -> None:
        """Keep a score."""
        self.put_all({model: {task: score}})

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
        sensitive = None if self.sensitive is None else list(self.sensitive)
        return {
            "magmerge": __version__,
            "settings": self._plain(),
            "sensitive": sensitive,
            "warnings": self.said,
            "cells": cells,
        }

    def _plain(self) -> dict[str, Any]:
        """The settings as JSON gives them back."""
        plain: dict[str, Any] = json.loads(json.dumps(self.settings))
        return plain


def is_ledger(path: Path) -> bool:
    """Whether a file is a run's, and not one of the same name that somebody else wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"magmerge", "settings", "cells"} <= set(content)


def rows_measured(folder: Path) -> frozenset[str]:
    """The models of which a run knows any score; none where there is no run."""
    try:
        return frozenset(_read(folder / NAME)["cells"])
    except OutputError:
        return frozenset()


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
