"""What recipes would do, told before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from magmerge.checkpoints.loader import Model
from magmerge.checkpoints.output.target import Target, check_space
from magmerge.checkpoints.planned import PlannedCheckpoint
from magmerge.core import dtypes
from magmerge.core.machine import Machine
from magmerge.core.recipe import Recipe
from magmerge.core.types import Plan
from magmerge.engine.document_plan import PlannedDocument, PlannedInput
from magmerge.engine.job import Job, Live
from magmerge.engine.notes import config_notes
from magmerge.engine.origins import licence_notes
from magmerge.engine.outputs import target_for
from magmerge.engine.plan import make_plan
from magmerge.engine.result import whole_steps
from magmerge.engine.trial import trial
from magmerge.pipeline.documents import (
    documents_models,
    named_models,
    opened_to_plan,
)
from magmerge.pipeline.merge import DEFAULTS, job_of
from magmerge.pipeline.recipe_files import recipes_of


def plan(*, out: str | Path | None = None, overwrite: bool = False, **arguments: Any) -> Plan:
    """What `merge` with these arguments would do, from headers alone; raises what it would."""
    planned = plan_document(out=out, overwrite=overwrite, **arguments).plan
    assert planned is not None
    return planned


def plan_document(
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    seconds: float = 0.0,
    **arguments: Any,
) -> PlannedDocument:
    """The same with what is read, and with a trial of about so many seconds."""
    for name in arguments:
        if name not in DEFAULTS:
            raise TypeError(f"plan() got an unexpected keyword argument {name!r}")
    job = job_of({**DEFAULTS, **arguments}, "ranges" if seconds else "headers", opened_to_plan)
    target = None if out is None else target_for(job, out, overwrite=overwrite)
    return planned(job, target, seconds=seconds)


def plan_job(job: Job, target: Target | None = None) -> Plan:
    """The plan of a job with what its result's reader will be warned of, and whether there is room
    for it. Raises what the merge would.
    """
    plan = make_plan(job, target)
    notes = licence_notes(job)
    if target is not None:
        check_space(target.path, plan.disk)
        notes = (*config_notes(job, target), *notes)
    return replace(plan, warnings=(*notes, *plan.warnings))


def planned(job: Job, target: Target | None = None, *, seconds: float = 0.0) -> PlannedDocument:
    """A job's plan with what is read; with `seconds` also a trial of about so long."""
    plan = plan_job(job, target)
    measured = trial(job, plan, seconds) if seconds else None
    return PlannedDocument(job.recipe, plan, _inputs(job), measured)


def plan_recipe(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    out: str | Path | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    machine: Machine | None = None,
    live: Live | None = None,
    overwrite: bool = False,
    seconds: float = 0.0,
) -> list[PlannedDocument]:
    """What `run` with these arguments would do, document by document, from headers alone; raises
    what it would, and all that is wrong with a recipe's file at once.

    A document that reads another's result is planned with the headers which that will have. With
    `seconds` some tensors of each are merged, for about so long, to tell how long all of them take.
    """
    recipes = recipes_of(recipe, models or {})
    machine = replace(machine or Machine(), hub="ranges" if seconds else "headers")
    documents: list[PlannedDocument] = []
    results: dict[str, PlannedCheckpoint | None] = {}
    resolved: list[Recipe] = []
    for place, document in enumerate(recipes):
        read = {k: path for k, path in named_models(document).items() if path in results}
        absent = [path for path in read.values() if results[path] is None]
        if absent:
            reason = f"it reads {absent[0]}, an adapter that is not made yet"
            documents.append(PlannedDocument(document, None, reason=reason))
            results[str(document.name)] = None
            continue
        last = place == len(recipes) - 1
        in_memory: dict[str, Any] = documents_models(document, models or {}, last=last)
        in_memory |= {key: results[path] for key, path in read.items()}
        job = opened_to_plan(document, in_memory, machine=machine, live=live, documents=resolved)
        target = target_for(job, out, overwrite=overwrite) if last and out is not None else None
        documents.append(planned(job, target, seconds=0.0 if read else seconds))
        resolved.append(job.recipe)
        plan = documents[-1].plan
        results[str(document.name)] = None if plan is None else _result(job, plan)
    return documents


def _result(job: Job, plan: Plan) -> PlannedCheckpoint | None:
    """What a plan's result will be for others; an adapter's modules are known when it is made."""
    if job.writes_adapter:
        return None
    steps = whole_steps(plan)
    specs = {step.spec.name: replace(step.stored, name=step.spec.name) for step in steps}
    ties = {step.spec.name: step.twin for step in steps if step.twin is not None}
    return PlannedCheckpoint(str(job.recipe.name), specs, ties, job.donor)


def _inputs(job: Job) -> tuple[PlannedInput, ...]:
    models = job.models
    members: list[Any] = [entry.model for entry in models.made_of]
    members += [m for m in (models.merged, models.base) if m is not None] if not members else []
    members += models.experts if not models.made_of else []
    return tuple(
        PlannedInput(
            entry.role,
            entry.source,
            len(model.specs),
            sum(dtypes.nbytes(spec) for spec in model.specs.values()),
        )
        for entry, model in zip(job.inputs, members, strict=True)
    )
