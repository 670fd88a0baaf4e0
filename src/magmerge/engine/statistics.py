"""Statistics of experts' inputs in place of samples: checked, opened, and bound to the stages."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from magmerge.checkpoints.digests import DigestMemory, stamp
from magmerge.checkpoints.input_digests import sha256_sum, whole_digest
from magmerge.checkpoints.input_sums import SumsOfExperts, models_told, open_sums
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.core import registry
from magmerge.core.errors import (
    Fault,
    MagmergeError,
    ParameterError,
    StructureError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.recipe import Calibration
from magmerge.core.types import Uncovered
from magmerge.engine.input_record import within
from magmerge.engine.job import Input, Job, Work

ANEW = "gather them anew with magmerge statistics, or name the file of that expert"
WRONG = {"expert": ("model", ANEW), "base": ("base", "give the base that they were gathered with")}
"""What statistics may be of another one of, by role, and what helps."""


def check_statistics(
    statistics: Any,
    experts: Collection[str],
    calibrations: Sequence[Calibration],
    *,
    samples: bool,
) -> None:
    """Errors where statistics are given in vain, beside samples, or not for every expert."""
    if not isinstance(statistics, Mapping):
        raise ParameterError(
            f"statistics are {statistics!r}, of no expert by name",
            remedy="write --statistics NAME=FILE for each expert (statistics={name: file})",
        )
    items = [registry.calibrators.get(calibration.method) for calibration in calibrations]
    hungry = [item for item in items if item.needs == "inputs"]
    if not hungry:
        raise ParameterError(
            "statistics are given, but no calibration looks at them",
            remedy="add --calibrate regmean, or drop them",
        )
    for item in hungry:
        if item.fed_by != "experts":
            raise ParameterError(
                f"{item.name} looks at what the merged model feeds its layers, which no file of "
                "statistics holds",
                remedy="give samples (--data), or calibrate with regmean",
            )
    if samples:
        raise ParameterError(
            "samples and statistics are both given",
            remedy="drop one of them: statistics take the place of samples",
        )
    for name in statistics:
        if name not in experts:
            raise UnknownNameError(
                f"statistics are given for {name!r}, which is no expert",
                remedy=suggestion(name, list(experts)),
            )
    lacking = [name for name in experts if name not in statistics]
    if lacking:
        raise ParameterError(
            f"no statistics are given for {', '.join(lacking)}",
            remedy=f"add --statistics {lacking[0]}=FILE, which magmerge statistics writes",
        )


def with_statistics(job: Job) -> Job:
    """The job with the sums that its calibrator solves from, of the files that its recipe names.

    CheckpointError for what is no such file, StructureError where layers have other sizes.
    """
    files, faults, layout = {}, [], job.models.layout
    kinds = kinds_of(layout, read_model_config(layout))
    for expert in job.models.experts:
        path = Path(job.recipe.statistics[expert.name])
        files[expert.name], _ = open_sums(path)
        for name, spec in files[expert.name].specs.items():
            own = layout.specs.get(name)
            if own is None:
                continue
            turned = kinds[name] == "transposed"
            inputs = own.shape[0] if turned else math.prod(own.shape[1:])
            if spec.shape != (inputs + 1, inputs + 1):
                told = f"{path}: {name} has sums of {spec.shape[0] - 1} features"
                faults.append(Fault(f"{told}, the layer has {inputs}", ANEW))
    if faults:
        raise StructureError(faults)
    sums = SumsOfExperts(files)
    stages = replace(job.stages, treatment=replace(job.stages.treatment, sums=sums))
    stamps = {path: stamp(path) for file in files.values() for path in file.files}
    models = replace(job.models, stamps={**job.models.stamps, **stamps})
    return replace(job, stages=stages, models=models)


def digests_of(inputs: Sequence[Input]) -> dict[str, dict[str, str]]:
    """The SHA-256 of each file of the base and of the experts, by role and the file's path in its
    model: what the hub tells too of files that are read there.
    """
    digests, memory = dict[str, dict[str, str]](), DigestMemory()
    for entry in inputs:
        own = {within(f, entry): sha256_sum(f, stamp(f), memory) for f in entry.files}
        digests.setdefault(entry.role, {}).update(own)
    memory.save()
    return digests


def check_models(job: Job) -> None:
    """ParameterError where an expert, or the base of an adapter, is not the model that its
    statistics were gathered of: another content, whatever its files are called.

    What was in memory is not compared.
    """
    memory = DigestMemory()
    for expert in job.models.experts:
        path = Path(job.recipe.statistics[expert.name])
        told = models_told(path, open_sums(path)[1])
        # What an adapter's layers are fed is its base's doing too.
        base = job.models.base if expert.whole is None else None
        for role, model in (("expert", expert), ("base", base)):
            word, remedy = WRONG[role]
            files = () if model is None else model.files
            own = {sha256_sum(file, stamp(file), memory) for file in files}
            if model is not None and own and told.get(role) and own != {*told[role].values()}:
                raise ParameterError(
                    f"these statistics are of another {word} than {model.source}",
                    source=path,
                    remedy=remedy,
                )
    memory.save()


def recorded(job: Job) -> dict[str, dict[str, str]]:
    """What the record tells of each expert's statistics: the file's digest, and its header."""
    found = {}
    for name, text in job.recipe.statistics.items():
        path = Path(text)
        digest = whole_digest(path, job.models.stamps[path])
        found[name] = {"digest": digest, "samples": open_sums(path)[1].get("samples", "")}
    return found


def uncovered_by_statistics(work: Work) -> tuple[Uncovered, ...]:
    """The layers that a calibrator would solve for, had all files their sums; MagmergeError where
    it solves for none.
    """
    treatment, sums = work.stages.treatment, work.stages.treatment.sums
    items = [item for item, _ in treatment.calibrators if item.needs == "inputs"]
    names = [
        step.spec.name
        for step in work.plan.steps
        if step.calibrated and any(step.kind in item.acts_on for item in items)
    ]
    uncovered = [name for name in names if sums is not None and name not in sums]
    if len(uncovered) == len(names):
        files = ", ".join(work.job.recipe.statistics.values())
        raise MagmergeError(
            "no layer of this model has sums in every expert's statistics",
            source=files,
            remedy=ANEW,
        )
    return tuple(Uncovered(name, "not every expert's statistics have it") for name in uncovered)
