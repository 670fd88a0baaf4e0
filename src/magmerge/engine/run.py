"""A job from its plan to its result, pass by pass: the one way of every verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from magmerge.checkpoints.output.provenance import Account
from magmerge.checkpoints.output.target import Target
from magmerge.checkpoints.output.writer import FileSink, MemorySink, Sink
from magmerge.checkpoints.tensor_digests import watched
from magmerge.core.lazy import load
from magmerge.core.types import Plan
from magmerge.engine.form import form_of
from magmerge.engine.job import Findings, Job, Work
from magmerge.engine.kinship import check_distinct, doubts
from magmerge.engine.notes import config_notes, correlations, warn
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.plan import make_plan
from magmerge.engine.publish import Made, Report, check_unchanged, publish, publish_made
from magmerge.engine.result import Result, model_files, write_all
from magmerge.engine.samples import inputs_of
from magmerge.engine.stages import Treatment
from magmerge.engine.steps import Outcome

if TYPE_CHECKING:
    from magmerge.checkpoints.output.spool import Spool

Measure = Callable[[Work, Mapping[str, Any]], Findings]
"""A pass into the live model: from the work and each expert's inputs to what it finds."""


def run_job(
    job: Job, target: Target | None, *, measure: Measure, report: Report = lambda *_: {}
) -> Result:
    """Plan the job, do its passes, and publish the result where there is a target.

    Samples are read, and models compared, before any long work. Raises MagmergeError's children.
    """
    plan = make_plan(job, target)
    job = replace(job, digests=watched(job.states))
    inputs = inputs_of(job)
    if not job.takes:
        check_distinct(job.models, plan.steps)
    notes = _notes(job, plan, target)
    warn(notes)
    if job.recipe.statistics:
        load("magmerge.engine.statistics:check_models")(job)
    work = Work(job, plan)
    form = form_of(job)
    if form is not None:
        return _adapter(work, notes, target, report)

    def fill(sink: Sink) -> Account:
        findings = _findings(work, sink, inputs, measure)
        outcomes = _outcomes(with_findings(work, findings), sink)
        told = [outcome.note for outcome in outcomes if outcome.note]
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        verdict = findings.verdict
        if job.recipe.calibrate and not verdict:
            verdict = load("magmerge.engine.norm_verdict:norm_verdict")(records)
        own = (*findings.check.get("notes", ()), *verdict.get("notes", ()))
        more = (*told, *own, *correlations(job, records))
        warn(more)
        extra = _extra(job, findings) | ({"verdict": dict(verdict)} if verdict else {})
        return Account(records, (), (*notes, *more), findings.uncovered, extra)

    if target is None:
        kept = MemorySink()
        account = fill(kept)
        check_unchanged(job)
        return Result(job, plan, account, tensors=kept.tensors, report=report)
    files = model_files(job, list(plan.steps), target)
    plan = replace(plan, steps=tuple(files.steps), shards=tuple(files.shards))
    work = Work(job, plan)
    account = publish(job, files, target, fill, report)
    return Result(job, plan, account, target.path, report=report)


def _notes(job: Job, plan: Plan, target: Target | None) -> tuple[str, ...]:
    """What is to be said before the work begins."""
    notes = plan.warnings
    if not job.takes or job.models.base is not None:
        notes = (*notes, *doubts(job.models, plan.steps))
    if target is None:
        return notes
    told: tuple[str, ...] = load("magmerge.engine.origins:licence_notes")(job)
    return (*config_notes(job, target), *told, *notes)


def _extra(job: Job, findings: Findings) -> dict[str, Any]:
    """What the record tells of this job beside its layers."""
    extra: dict[str, Any] = {}
    if job.models.tokens:
        extra["tokens"] = dict(job.models.tokens)
    if job.recipe.statistics:
        extra["statistics"] = load("magmerge.engine.statistics:recorded")(job)
    if findings.check:
        extra["check"] = dict(findings.check)
    return extra


def _findings(work: Work, sink: Sink, inputs: Mapping[str, Any], measure: Measure) -> Findings:
    """What the live model tells; what a run before this one found is not measured again."""
    if work.job.recipe.statistics:
        told = load("magmerge.engine.statistics:uncovered_by_statistics")(work)
        return Findings(uncovered=told)
    if work.job.recipe.samples is None and not getattr(work.layout, "routers", ()):
        return Findings()
    before = sink.ledger.findings() if isinstance(sink, FileSink) else None
    known: Findings | None = (
        None if before is None else load("magmerge.engine.findings:unpacked")(before)
    )
    if known is not None:
        return known
    findings = measure(work, inputs)
    if isinstance(sink, FileSink):
        sink.keep_findings(load("magmerge.engine.findings:packed")(findings))
    return findings


def with_findings(work: Work, findings: Findings) -> Work:
    """The work as it goes on when the passes before the last one have found this."""
    if work.job.recipe.keep_best:
        findings = load("magmerge.engine.keep_best:best_of")(findings)
    treatment = replace(
        work.stages.treatment, gains=findings.gains, deltas=findings.deltas or None,
        shares=findings.shares,
    )  # fmt: skip
    if findings.left_out:
        treatment = Treatment()
    stages = replace(work.stages, treatment=treatment)
    return replace(work, job=replace(work.job, stages=stages), findings=findings)


def _outcomes(work: Work, sink: Sink) -> list[Outcome]:
    """Every step's outcome in the order of the plan; of those that are there already as noted."""
    if not isinstance(sink, FileSink):
        return [outcome for _, outcome in run_pass(bench_for(work, sink))]
    done = sink.resumed(lambda noted: _form().validate_python(noted))
    bench = bench_for(work, sink)
    todo = {step.key for step in work.plan.steps if step.key not in done}
    fresh = run_pass(bench, todo, finish=lambda step, outcome: sink.finish(step, _noted(outcome)))
    done |= {step.key: outcome for step, outcome in fresh}
    return [done[step.key] for step in work.plan.steps if step.key in done]


@cache
def _form() -> TypeAdapter[Outcome]:
    """What the ledger tells of a step, to be read; only a run that goes on needs it."""
    return TypeAdapter(Outcome)


def _noted(outcome: Outcome) -> bytes:
    """What the ledger tells of a step: what is not finite as null."""
    return to_json(outcome, inf_nan_mode="null")


def _adapter(work: Work, notes: tuple[str, ...], target: Target | None, report: Report) -> Result:
    """An adapter, in memory or written; what is finished of it is kept for a run after a kill."""
    form = form_of(work.job)
    assert form is not None
    if target is None:
        return form.result(work, notes, report)

    def make(spool: Spool) -> Made:
        result = form.result(work, notes, report, spool)
        files, tensors = result.files(result.job, target)

        def fill(sink: FileSink) -> Account:
            write_all(files.steps, tensors, sink)
            return result.account

        return Made(result.job, files, fill, result)

    made = publish_made(work.job, target, make, report)
    result: Result = replace(made.result, path=target.path)
    return result
