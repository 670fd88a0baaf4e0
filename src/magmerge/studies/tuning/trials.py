"""The trials of a search, and the file that holds them: one JSON line each, which a resumed search
reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.version import __version__
from magmerge.core.whole_file import refused, replace_whole

FILE = "trials.jsonl"


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe of a search: its values by the paths of their marks, its score, None where it
    failed, and that of each task.

    `same_as` is the trial that had the same recipe, which was not run again; `fault` is why it
    failed.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    same_as: int | None = None
    fault: str | None = None
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """Its values as one line."""
        return ", ".join(f"{name} {spoken(value)}" for name, value in self.values.items())


def spoken(value: Any) -> str:
    """A value as a reader of YAML knows it."""
    return value if isinstance(value, str) else json.dumps(value)


def best_of(trials: list[Trial], *, rising: bool) -> Trial | None:
    """The first of the best; None where all failed."""
    sign = 1.0 if rising else -1.0
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: sign * (trial.score or 0.0), default=None)


class TrialFile:
    """The trials in a folder; without one they are in memory only.

    `search` is all that decides what the trials are; a file of another search is not gone on with.
    """

    def __init__(self, folder: Path | None, search: Mapping[str, Any], *, resume: bool) -> None:
        self.trials: list[Trial] = []
        self._path = None if folder is None else folder / FILE
        self._head = {"magmerge": __version__, "search": json.loads(json.dumps(dict(search)))}
        self._begun = False
        if self._path is not None and resume and self._path.exists():
            self.trials = self._read(self._path)

    def add(self, trial: Trial) -> None:
        """Keep a trial, so that it is there after a kill."""
        self.trials.append(trial)
        if self._path is None:
            return
        try:
            if not self._begun:
                # A search that finds no trial leaves no file. This drops a line that was cut off.
                lines = [self._head, *map(asdict, self.trials)]
                replace_whole(self._path, "".join(f"{json.dumps(line)}\n" for line in lines))
                self._begun = True
                return
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(asdict(trial))}\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise refused(error, self._path) from error

    def _read(self, path: Path) -> list[Trial]:
        """The trials that are whole; ParameterError where they are of another search."""
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
            content = json.loads(head)
            search = content["search"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _odd(path) from error
        other = [key for key, value in self._head["search"].items() if search.get(key) != value]
        if other or search.keys() - self._head["search"].keys():
            raise ParameterError(
                f"these are trials of another search: {', '.join(other) or 'more is said'} differs",
                source=path,
                remedy="call it as it was called, or begin anew with --yes (overwrite=True)",
            )
        trials: list[Trial] = []
        for line in lines:
            try:
                trials.append(Trial(**json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                break
        if [trial.number for trial in trials] != list(range(len(trials))):
            raise _odd(path)
        return trials


def _odd(path: Path) -> MagmergeError:
    return ParameterError(
        "it is no file of a search's trials",
        source=path,
        remedy="begin anew with --yes (overwrite=True)",
    )
