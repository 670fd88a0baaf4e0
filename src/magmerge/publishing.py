"""Where a result goes, and the one way it gets there: staged, filled, digested, published."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.checkpoints.donor import companion_files, read_companions, weights_file
from magmerge.checkpoints.layout import INDEX, SUFFIX
from magmerge.checkpoints.staging import Staging
from magmerge.checkpoints.target import check_siblings, check_space, check_target
from magmerge.checkpoints.writer import FileSink, Sink
from magmerge.digests import DigestMemory, stamp
from magmerge.errors import CheckpointError, MagmergeWarning, MissingExtraError, OutputError
from magmerge.executors import local
from magmerge.models import Sources
from magmerge.provenance import FILE, document
from magmerge.recipe import Recipe
from magmerge.report.page import render
from magmerge.report.writing import REPORT
from magmerge.run import Progress, counter
from magmerge.types import LayerRecord, Plan, Uncovered
from magmerge.version import __version__


class Filled(NamedTuple):
    """What filling a sink told: the layers' records, warnings, layers that were not measured."""

    records: Sequence[LayerRecord]
    warnings: tuple[str, ...]
    uncovered: Sequence[Uncovered] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: a folder, or one file."""

    path: Path
    overwrite: bool
    donor: Path | None

    @classmethod
    def at(
        cls, out: str | Path, sources: Sources, *, overwrite: bool, donor: Path | None
    ) -> Target:
        """The target, checked: OutputError where it is taken or is an input."""
        if str(out) == "":
            raise OutputError("the output's name is empty", remedy="name a folder or a file")
        given = Path(out)
        # A link is followed once, here: what is renamed in the end is what it leads to.
        indirect = given.is_symlink() or ".." in given.parts
        target = cls(given.resolve() if indirect else given, overwrite, donor)
        paths = [path for _, _, files in inputs_of(sources) for path in files]
        paths += [path.parent for path in paths]
        paths += [folder for folder in (sources.layout.folder, donor) if folder is not None]
        single, own = target.single, target.own
        check_target(target.path, paths, single=single, overwrite=overwrite, own=own)
        if single:
            beside = [
                target.path.parent / name for name in (target.record_file, target.report_file)
            ]
            check_siblings(target.path, beside, overwrite=overwrite)
        return target

    def staging(self) -> Staging:
        """Where it grows."""
        return Staging(self.path, single=self.single, overwrite=self.overwrite, own=self.own)

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.suffix == ".safetensors"

    @property
    def weights(self) -> str:
        """The file of the tensors, from whose name those of several are made."""
        return self.path.name if self.single else weights_file(self.donor)

    @property
    def own(self) -> frozenset[str]:
        """The files that its folder may get, but for shards."""
        beside = companion_files(self.donor)
        index = f"{self.weights.removesuffix(SUFFIX)}{INDEX}"
        return frozenset({self.weights, index, *beside, self.record_file, self.report_file})

    @property
    def record_file(self) -> str:
        """Where the provenance goes, relative to the target's folder."""
        return f"{self.path.stem}.{FILE}" if self.single else FILE

    @property
    def report_file(self) -> str:
        """Where a calibration's report goes, relative to the target's folder."""
        return f"{self.path.stem}.{REPORT}" if self.single else REPORT

    def metadata(self, recipe: Recipe) -> dict[str, str]:
        """What a single file carries of its provenance in its own header."""
        if not self.single:
            return {}
        return {
            "magmerge": __version__,
            "magmerge_recipe": json.dumps(recipe.model_dump(mode="json")),
        }


def write(
    target: Target,
    plan: Plan,
    recipe: Recipe,
    sources: Sources,
    donor: Path | None,
    fill: Callable[[Sink], Filled],
    *,
    threads: int,
    progress: Progress | None = None,
) -> Filled:
    """Stage the result, let `fill` give its tensors to a sink, and publish it with its provenance.

    Space and companion files are looked at first, so that what is wrong with them costs no work.
    """
    check_space(target.path, plan.disk)
    notes = _config_notes(target, donor)
    extra = {} if target.single else read_companions(companion_files(donor), recipe.dtype)
    with target.staging() as staging, FileSink(plan, staging) as sink:
        filled = fill(sink)
        check_unchanged(sources.stamps)
        filled = filled._replace(warnings=(*notes, *filled.warnings))
        digests = digest_inputs(inputs_of(sources), sink.settlers(), threads, progress)
        files = [*(shard.file for shard in plan.shards), *extra]
        text = document(
            recipe, digests, filled.records, filled.warnings, filled.uncovered, files=files
        )
        extra |= {target.record_file: text.encode()}
        if recipe.calibrate:
            extra |= report_on(target.report_file, text, target.path)
        sink.publish(extra)
    return filled


def report_on(name: str, record: str, path: Path) -> dict[str, bytes]:
    """The calibration's report, made from its record; a warning where it cannot be drawn here."""
    try:
        return {name: render(json.loads(record)).encode()}
    except MissingExtraError as error:
        warn([f"no {name} is written: {error.problem}; {error.remedy}, then "
              f"magmerge report {path}"])  # fmt: skip
        return {}


def warn(notes: Sequence[str]) -> None:
    """Warn of each in Python's own way."""
    for note in notes:
        warnings.warn(note, MagmergeWarning, stacklevel=4)


def _config_notes(target: Target, donor: Path | None) -> tuple[str, ...]:
    """A folder without config.json holds tensors, but no model that transformers can load."""
    if target.single or "config.json" in companion_files(donor):
        return ()
    note = (
        f"{donor or 'a model in memory or in a single file'} has no config.json, so the result "
        "is tensors only; name the folder of a model with --donor (donor=)"
    )
    warn([note])
    return (note,)


def inputs_of(sources: Sources) -> list[tuple[str, str, Sequence[Path]]]:
    """Role, name and files of each model."""
    inputs: list[tuple[str, str, Sequence[Path]]] = []
    if sources.merged is not None:
        inputs.append(("merged", sources.merged.source, sources.merged.files))
    if sources.base is not None:
        inputs.append(("base", sources.base.source, sources.base.files))
    return inputs + [("expert", expert.source, expert.files) for expert in sources.experts]


def check_unchanged(stamps: Mapping[Path, str]) -> None:
    """CheckpointError where an input is no longer the file that was opened."""
    for file, before in stamps.items():
        if not file.is_file() or stamp(file) != before:
            raise CheckpointError(
                "it was changed after it was opened",
                source=file,
                remedy="keep the inputs unchanged until the result is saved, and merge again",
            )


def digest_inputs(
    inputs: Sequence[tuple[str, str, Sequence[Path]]],
    others: Sequence[Callable[[], None]],
    threads: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Each input as the provenance tells it, while `others` wait for the disk.

    A model in memory has no files.
    """
    memory = DigestMemory()
    files = list(dict.fromkeys(file for _, _, files in inputs for file in files))
    jobs: list[Callable[[], str | None]] = [*others]
    jobs += [partial(memory.digest, file) for file in files]
    told = counter("digesting inputs, syncing", len(jobs), progress)
    found = local.run(local.single(jobs), threads=threads, done=told)
    memory.save()
    digests = dict(zip(files, found[len(others) :], strict=True))
    return [
        {"role": role, "source": source, "files": {file.name: digests[file] for file in own}}
        for role, source, own in inputs
    ]
