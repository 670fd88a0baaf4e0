"""What a record tells of the models that a job read: their files with digests, roles, facts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from magmerge.checkpoints.digests import DigestMemory, told_digest
from magmerge.checkpoints.input_digests import sha256_sum, what_is_left, whole_digest
from magmerge.checkpoints.output.provenance import Account, content_digest
from magmerge.checkpoints.output.target import Target
from magmerge.core.lazy import load
from magmerge.core.recipe import Recipe
from magmerge.core.recipe_paths import seen_from, told_from, with_paths
from magmerge.engine.executors import local
from magmerge.engine.job import Input, Job

TOLD = "told by the hub"
"""What is said of SHA-256 digests that nobody computed here."""


def recorded_inputs(job: Job, settlers: Sequence[Callable[[], None]]) -> list[dict[str, Any]]:
    """Each input as the record tells it, while `settlers` wait for the disk with the result's own
    files. What the job has not read of a file's tensors is read here, so that its digest is of all.

    A model in memory has no files, and is told by its content.
    """
    states = job.states
    told = {file: digest for file in states if (digest := told_digest(file)) is not None}
    by_file, contents = _digests(job, {f: s for f, s in states.items() if f not in told}, settlers)
    by_file |= told
    sums = _sha256_sums(job, states)
    facts = load("magmerge.engine.origins:facts_of_inputs")(job)
    entries = []
    for entry, own_facts in zip(job.inputs, facts, strict=True):
        names = {file: within(file, entry) for file in entry.files}
        own_sums = {name: sums[file] for file, name in names.items() if file in sums}
        more = {
            "digests": TOLD if told.keys() & names.keys() else None,
            "sha256": own_sums,
            "content": contents.get(id(entry.model)),
            "facts": own_facts,
        }
        files = {name: by_file[file] for file, name in names.items()}
        known = {"role": entry.role, "source": entry.source, "files": files}
        entries.append({**known, **{key: value for key, value in more.items() if value}})
    return [*entries, *map(dict, job.further_origins)]


def _digests(
    job: Job, states: Mapping[Path, str], settlers: Sequence[Callable[[], None]]
) -> tuple[dict[Path, str], dict[int, str]]:
    """The digests of files, and of models in memory by their identity."""
    others = [file for file in states if file not in job.digests]
    held = [entry.model for entry in job.inputs if not entry.files and entry.model is not None]
    calls: list[Callable[[], str | None]] = [*settlers]
    for file, known in job.digests.items():
        calls += what_is_left(file, known)
    count = len(calls)
    calls += [partial(whole_digest, file, states[file]) for file in others]
    calls += [partial(content_digest, model) for model in held]
    digests = _carried_out(job, "digesting inputs, syncing", calls)[count:]
    by_file = {file: known.digest() for file, known in job.digests.items()}
    by_file |= zip(others, digests[: len(others)], strict=True)
    contents = zip(map(id, held), digests[len(others) :], strict=True)
    return by_file, dict(contents)


def _carried_out(job: Job, label: str, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    done = job.machine.counter(label, len(calls))
    return local.run(local.single(calls), job.machine, done=done)


def _sha256_sums(job: Job, states: Mapping[Path, str]) -> dict[Path, str]:
    """SHA-256 of files, where the machine is asked for it: each is read once more, unless that was
    done before and remembered. Results of earlier documents have none: they are gone soon.
    """
    if not job.machine.sha256:
        return {}
    memory = DigestMemory()
    files = [file for file in states if file not in job.passing]
    calls = [partial(sha256_sum, file, states[file], memory) for file in files]
    sums = _carried_out(job, "SHA-256 of inputs", calls)
    memory.save()
    return dict(zip(files, sums, strict=True))


def within(file: Path, entry: Input) -> str:
    """A file's path from its model's folder, as parts of a pipeline have files of one name."""
    folder = None if entry.model is None else entry.model.folder
    inside = folder is not None and folder in file.parents
    return file.relative_to(folder).as_posix() if inside and folder is not None else file.name


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
        self._absolute = {place: told_from(self.folder, place) for place in _places(job, path)}

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
