"""What `magmerge.suite` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
            "tasks": [{**asdict(one), "data": dict(one.data)} for one in self.tasks],
            "warnings": list(self.warnings),
        }
