"""A result to the disk, whatever verb made it: staged, filled, digested, verified, named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from magmerge.checkpoints.digests import stamp
from magmerge.checkpoints.open_files import read_errors
from magmerge.checkpoints.output.own_files import RECIPE, RECORD
from magmerge.checkpoints.output.provenance import (
    Account,
    content_digest,
    document,
    versions,
)
from magmerge.checkpoints.output.staging import Staging
from magmerge.checkpoints.output.target import Target, check_space
from magmerge.checkpoints.output.writer import FileSink
from magmerge.core.errors import changed_meanwhile
from magmerge.core.lazy import load
from magmerge.core.types import Shard, Step
from magmerge.core.version import __version__
from magmerge.engine.job import Job

if TYPE_CHECKING:
    from magmerge.checkpoints.output.spool import Spool

CONFIG = "config.json"
Report = Callable[[str, Target, Mapping[str, bytes]], Mapping[str, bytes]]
"""From the record's text, and config, tokenizer and recipe by their names, to further files beside
the result, such as report.html and the model card.
"""


@dataclass(frozen=True, slots=True)
class Files:
    """What a result's files will hold: its steps with their places, the shards, and texts by name:
    config and tokenizer, an adapter's configuration.
    """

    steps: Sequence[Step]
    shards: Sequence[Shard]
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return (*(shard.file for shard in self.shards), *self.texts)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        texts = sum(len(text) for text in self.texts.values())
        return sum(shard.size for shard in self.shards) + texts


class Made(NamedTuple):
    """A result that is made: its files, and what fills them."""

    job: Job
    files: Files
    fill: Callable[[FileSink], Account]
    result: Any


def publish(
    job: Job, files: Files, target: Target, fill: Callable[[FileSink], Account], report: Report
) -> Account:
    """Let `fill` give its tensors to a sink, and publish them with recipe and record.

    Nothing is at the target before all is on the disk and found to be as planned. Space is looked
    at first, so that what is wrong with it costs no work.
    """
    check_space(target.path, files.size)
    with _staging(job, files, target) as staging:
        return _filled(job, files, staging, fill, report)


def publish_made(job: Job, target: Target, make: Callable[[Spool], Made], report: Report) -> Made:
    """The same of a result whose files are known only when all of it is made: `make` keeps what is
    finished in a spool.
    """
    with _staging(job, Files((), ()), target) as staging:
        made = make(load("magmerge.checkpoints.output.spool:Spool")(staging.folder, target.path))
        check_space(target.path, made.files.size)
        _filled(made.job, made.files, staging, made.fill, report)
    return made


def _staging(job: Job, files: Files, target: Target) -> Staging:
    """The place of a result's files, as far as they are known, until they get their names."""
    return Staging(target, _key(job, files, target), files.names or target.own)


def _filled(
    job: Job, files: Files, staging: Staging, fill: Callable[[FileSink], Account], report: Report
) -> Account:
    """The account of a result that was filled into its staging area and published."""
    target = staging.place
    with FileSink(files.steps, files.shards, staging) as sink:
        account = fill(sink)
        check_unchanged(job)
        inputs = load("magmerge.engine.input_record:recorded_inputs")(job, sink.settlers())
        paths = load("magmerge.engine.input_record:RecordedPaths")(job, target)
        documents = [*map(paths.recipe, (*job.documents, job.recipe))]
        recipes = "---\n".join(each.to_yaml() for each in documents)
        texts = {**files.texts, target.named(RECIPE): recipes.encode()}
        told = {
            "files": sorted((*files.names, RECIPE)),
            "texts": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
            "checksums": sink.checksums(),
            **({"auto": dict(job.choice)} if job.choice else {}),
        }
        entries = [*map(paths.entry, inputs)]
        record = document(documents[-1], entries, paths.account(account), told)
        beside = {RECORD: record.encode(), RECIPE: recipes.encode()}
        extra = {target.named(name): text for name, text in beside.items()}
        sink.publish({**files.texts, **extra, **report(record, target, texts)})
    return account


def origin(job: Job) -> dict[str, str]:
    """What a single file carries of its provenance in its own header."""
    recipe = json.dumps(job.recipe.model_dump(mode="json"))
    return {"magmerge": __version__, "magmerge_recipe": recipe}


def check_unchanged(job: Job) -> None:
    """CheckpointError where an input is no longer the file that was opened."""
    for file, before in job.models.stamps.items():
        if file in job.passing:
            continue
        if not file.is_file() or stamp(file) != before:
            raise changed_meanwhile(file)


def _key(job: Job, files: Files, target: Target) -> str:
    """What tells this work from any other: recipe, versions, inputs as they are, and what the files
    will begin with. Where something of it cannot be told, such as samples in memory, no other run
    is the same. Models in memory are digested only for a run that asks to be gone on with.
    """
    if not target.resume and any(not entry.files for entry in job.inputs):
        return ""
    digest = hashlib.sha256(f"{job.recipe.digest} {versions()} {__version__}".encode())
    for file, state in sorted(job.models.stamps.items()):
        digest.update(os.fsencode(f"{file}\0{state}\0"))
    for entry in job.inputs:
        if not entry.files and entry.model is not None:
            digest.update(content_digest(entry.model).encode())
        folder = None if entry.model is None else entry.model.folder
        if folder is not None and (folder / CONFIG).is_file():
            with read_errors(folder / CONFIG):
                digest.update((folder / CONFIG).read_bytes())
    for shard in files.shards:
        digest.update(f"{shard.file}\0".encode() + shard.header)
    for name, text in sorted(files.texts.items()):
        digest.update(f"{name}\0".encode() + text)
    return digest.hexdigest() + _samples_key(job)


def _samples_key(job: Job) -> str:
    """The same of samples: files as they are; a name of its own for what lies in memory."""
    if job.recipe.samples is None:
        return ""
    sources = [] if job.live.data is None else list(job.live.data.values())
    told = all(isinstance(source, str | Path) for source in sources)
    if not told or job.live.module is not None or job.recipe.samples.build is not None:
        return uuid4().hex
    digest = hashlib.sha256()
    for source in map(Path, sources):
        places = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in places:
            if file.is_file():
                digest.update(os.fsencode(f"{file}\0{stamp(file)}\0"))
    return digest.hexdigest()
