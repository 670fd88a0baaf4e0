"""How a result's files call what it was made of: from its own folder, so that it can be mailed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from magmerge.checkpoints.output.provenance import Account
from magmerge.checkpoints.output.target import Target
from magmerge.core.recipe import Recipe
from magmerge.core.recipe_paths import seen_from, with_paths
from magmerge.engine.job import Job


def recorded_recipe(job: Job, folder: Path) -> Recipe:
    """A job's recipe as it stands in a folder, beside the result."""
    return _called_from(folder, job, job.recipe)


def _called_from(folder: Path, job: Job, recipe: Recipe) -> Recipe:
    change = seen_from(folder, {document.name for document in job.documents})
    return Recipe.model_validate(with_paths(recipe.model_dump(mode="json"), change))


class RecordedPaths:
    """The paths of a job as the files of its result at a target tell them."""

    def __init__(self, job: Job, target: Target) -> None:
        path = target.path.absolute()
        self.job, self.folder = job, path.parent if target.single else path
        self.change = seen_from(self.folder, {document.name for document in job.documents})
        self._absolute = {place: self._relative(place) for place in _places(job, path)}

    def _relative(self, place: str) -> str:
        try:
            return Path(os.path.relpath(place, self.folder)).as_posix()
        except ValueError:  # on another drive
            return place

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe as it stands beside the result."""
        return _called_from(self.folder, self.job, recipe)

    def entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """An input as the record tells it."""
        return {**entry, "source": self.change(entry["source"])}

    def account(self, account: Account) -> Account:
        """What was done, with no absolute path in what is said of it."""
        notes = tuple(map(self._text, account.warnings))
        return replace(account, warnings=notes, extra=self._value(account.extra))

    def header(self, metadata: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
        """The entries of a file's header; those that are an input's own stay as they are."""
        own = json.dumps(recipe.model_dump(mode="json"))
        told = json.dumps(self.recipe(recipe).model_dump(mode="json"))
        return {key: told if text == own else text for key, text in metadata.items()}

    def _text(self, text: str) -> str:
        for place, other in self._absolute.items():
            text = text.replace(place, other)
        return text

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._value(key): self._value(own) for key, own in value.items()}
        return [*map(self._value, value)] if isinstance(value, list | tuple) else value


def _places(job: Job, out: Path) -> list[str]:
    """The absolute paths that messages of a job may hold, the longest first."""
    files: Iterable[Path] = job.models.stamps
    told = {str(out), *map(str, files), *(str(file.parent) for file in files)}
    told |= {str(folder) for folder in job.input_folders} | {str(job.donor or "")}
    for document in (*job.documents, job.recipe):
        told |= {part for text in document.models.values() for part in (text, *text.split("+"))}
        told |= set(document.statistics.values())
        told |= set() if document.samples is None else set(document.samples.data.values())
    return sorted(filter(os.path.isabs, told), key=len, reverse=True)
