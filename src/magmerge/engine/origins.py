"""Where a job's models are from, as their folders tell it: names on the hub, and licences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magmerge.checkpoints.licences import joined
from magmerge.checkpoints.model_facts import facts_of, licence_from
from magmerge.engine.job import Input, Job

ADAPTER = "adapter_model.safetensors"
"""The file of an adapter whose folder is its own."""


def facts_of_inputs(job: Job) -> list[dict[str, Any]]:
    """What is told of each of the job's inputs, in their order; nothing of a document's result,
    whose own inputs tell it.
    """
    made = _made(job)
    return [
        {} if entry.source in made else facts_of(_name(entry), entry.source, _folder(entry))
        for entry in job.inputs
    ]


def _made(job: Job) -> set[str | None]:
    return {document.name for document in job.documents}


def licence_notes(job: Job) -> tuple[str, ...]:
    """What has to be known of the licence that the result has; nothing where no model tells one."""
    pairs = zip(job.inputs, facts_of_inputs(job), strict=True)
    made = _made(job)
    told = [(_name(entry), facts) for entry, facts in pairs if entry.source not in made]
    told += [
        (Path(origin["source"]).name, origin.get("facts", {})) for origin in job.further_origins
    ]
    return joined([licence_from(name, facts) for name, facts in told]).notes


def _name(entry: Input) -> str:
    """What a note calls a model: the last part of its path."""
    path = Path(entry.source)
    return (path.parent if path.name == ADAPTER else path).name or entry.source


def _folder(entry: Input) -> Path | None:
    """The folder that is this model's own; a single file's may hold anything beside it."""
    if entry.model is not None:
        return entry.model.folder
    file = next(iter(entry.files), None)
    return file.parent if file is not None and file.name == ADAPTER else None
