"""A job from its plan to its result, pass by pass: the one way of every verb."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from magmerge.checkpoints.provenance import Account
from magmerge.checkpoints.target import Target
from magmerge.checkpoints.writer import FileSink, MemorySink, Sink
from magmerge.engine.adapter_output import content_of
from magmerge.engine.distinct import check_distinct, doubts
from magmerge.engine.extraction import ExtractedModule, LostTensor
from magmerge.engine.findings import packed, unpacked
from magmerge.engine.job import Findings, Job, Work
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.plan import make_plan
from magmerge.engine.publish import Report, check_unchanged, publish, warn
from magmerge.engine.result import (
    AdapterResult,
    Extraction,
    Result,
    config_notes,
    model_files,
    write_all,
)
from magmerge.engine.samples import inputs_of
from magmerge.engine.steps import Outcome
from magmerge.errors import AdapterError, StructureError, printable
from magmerge.types import LayerRecord

CORRELATED = 0.1
"""Mean cosine of task vectors above which WSC's ellipsoid makes the factor too small."""
NAMED = 3
"""Tensors of one reason that a warning names."""
Measure = Callable[[Work, Mapping[str, Any]], Findings]
"""A pass into the live model: from the work and each expert's inputs to what it finds."""


def run_job(
    job: Job, target: Target | None, *, measure: Measure, report: Report = lambda *_: {}
) -> Result:
    """Plan the job, do its passes, and publish the result where there is a target.

    Samples are read, and models compared, before any long work. Raises MagmergeError's children.
    """
    plan = make_plan(job, target)
    inputs = inputs_of(job)
    notes = plan.warnings
    if not job.takes:
        check_distinct(job.models, plan.steps)
    if not job.takes or job.models.base is not None:
        notes = (*notes, *doubts(job.models, plan.steps))
    if target is not None:
        notes = (*config_notes(job, target), *notes)
    warn(notes)
    work = Work(job, plan)
    if job.writes_adapter:
        result = _adapter(work, notes, report)
        if target is None:
            return result
        return replace(result, path=_saved(result, target))

    def fill(sink: Sink) -> Account:
        found = _findings(work, sink, inputs, measure)
        outcomes = _outcomes(replace(work, findings=found), sink)
        told = [outcome.note for outcome in outcomes if outcome.note]
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        more = (*told, *_correlations(job, records))
        warn(more)
        return Account(records, (), (*notes, *more), found.uncovered)

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


def _findings(work: Work, sink: Sink, inputs: Mapping[str, Any], measure: Measure) -> Findings:
    """What the live model tells; what a run before this one found is not measured again."""
    if work.job.recipe.samples is None:
        return Findings()
    ledger = sink.ledger if isinstance(sink, FileSink) else None
    before = ledger.findings() if ledger is not None else None
    if before is not None:
        return unpacked(before)
    found = measure(work, inputs)
    if ledger is not None:
        ledger.keep_findings(packed(found))
    return found


def _outcomes(work: Work, sink: Sink) -> list[Outcome]:
    """Every step's outcome in the order of the plan; of those that are there already as noted."""
    treatment = replace(
        work.stages.treatment, gains=work.findings.gains, deltas=work.findings.deltas or None
    )
    stages = replace(work.stages, treatment=treatment)
    work = replace(work, job=replace(work.job, stages=stages))
    if not isinstance(sink, FileSink):
        return [outcome for _, outcome in run_pass(bench_for(work, sink))]
    reader = TypeAdapter(Outcome)
    done = {key: reader.validate_python(told) for key, told in sink.resumed().items()}
    bench = bench_for(work, sink)
    todo = {step.key for step in work.plan.steps if step.key not in done}
    fresh = run_pass(
        bench, todo, finish=lambda step, outcome: sink.ledger.finish(step, asdict(outcome))
    )
    done |= {step.key: outcome for step, outcome in fresh}
    return [done[step.key] for step in work.plan.steps if step.key in done]


def _adapter(work: Work, notes: tuple[str, ...], report: Report) -> AdapterResult:
    """The pass of factors into memory, and what it says of the adapter."""
    job, spool = work.job, MemorySink()
    outcomes = [outcome for _, outcome in run_pass(bench_for(work, spool))]
    check_unchanged(job)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    modules = [outcome.module for outcome in outcomes if outcome.module is not None]
    alike = _correlations(job, records)
    warn(alike)
    notes = (*notes, *alike)
    if job.models.union is not None:
        content = content_of(job, work.plan, spool.tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in spool.tensors.values())
        plan = replace(work.plan, disk=size)
        return AdapterResult(
            job, plan, Account(records, modules, notes), report=report, content=content
        )
    lost = tuple(module for module in modules if isinstance(module, LostTensor))
    held = [module for module in modules if isinstance(module, ExtractedModule)]
    _check_held(job, held, lost)
    norm = math.hypot(*(one.norm for one in held), *(one.norm for one in lost))
    missed = math.hypot(*(one.norm * one.error for one in held), *(one.norm for one in lost))
    more = _loss_notes(lost, norm)
    warn(more)
    extra = {"norm": norm, "error": missed / norm, "lost": [asdict(tensor) for tensor in lost]}
    account = Account(records, held, (*notes, *more), extra=extra)
    content = content_of(job, work.plan, spool.tensors)
    return Extraction(
        job,
        work.plan,
        account,
        report=report,
        content=content,
        lost=lost,
        norm=norm,
        error=missed / norm,
    )


def _saved(result: AdapterResult, target: Target) -> Any:
    """An adapter, written to a target that was checked before the work."""
    files, tensors = result.files(result.job, target)

    def fill(sink: FileSink) -> Account:
        write_all(files.steps, tensors, sink)
        return result.account

    publish(result.job, files, target, fill, result.report)
    return target.path


def _check_held(job: Job, held: Sequence[ExtractedModule], lost: Sequence[LostTensor]) -> None:
    """An error where there is nothing to write."""
    model = job.models.experts[0].source if job.takes else "the merge"
    if not held and not lost:
        raise StructureError(
            [f"{model} is equal to the base {job.models.layout.source}: nothing was learnt"],
            remedy="check which model is the base",
        )
    if not held:
        raise AdapterError(
            f"nothing that an adapter holds was changed: {'; '.join(_by_reason(lost))}",
            source=model,
            remedy="name what else may be adapted with --target (targets=)",
        )


def _loss_notes(lost: Sequence[LostTensor], norm: float) -> tuple[str, ...]:
    if not lost:
        return ()
    share = math.hypot(*(tensor.norm for tensor in lost)) / norm
    count = f"{len(lost)} changed tensor{'' if len(lost) == 1 else 's'}"
    return (
        f"{count} not in the adapter, {100 * share:.3g} % of the change's norm: "
        f"{'; '.join(_by_reason(lost))}",
    )


def _by_reason(lost: Sequence[LostTensor]) -> list[str]:
    """The tensors by reason, the largest first."""
    reasons: dict[str, list[str]] = {}
    for tensor in sorted(lost, key=lambda tensor: -tensor.norm):
        reasons.setdefault(tensor.reason, []).append(printable(tensor.name))
    return [
        ", ".join(names[:NAMED])
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        + f" ({reason})"
        for reason, names in reasons.items()
    ]


def _correlations(job: Job, records: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Where task vectors are too alike for what a calibrator assumes of them."""
    notes = []
    for item, bound in job.stages.treatment.calibrators:
        if not item.near_orthogonal(**bound):
            continue
        seen = [r for r in records if r.cosine is not None and item.name in r.calibrated_by]
        high = [r for r in seen if (r.cosine or 0.0) > CORRELATED]
        low = [r for r in seen if (r.cosine or 0.0) < -CORRELATED]
        if len(low) > len(seen) / 2:
            notes.append(
                f"the experts' task vectors point away from each other in {len(low)} layers (mean "
                f"cosine below -{CORRELATED}); is {job.recipe.base} really their base?"
            )
        if high:
            worst = max(high, key=lambda record: record.cosine or 0.0)
            notes.append(
                f"{item.name} assumes near-orthogonal task vectors, but in {len(high)} of "
                f"{len(seen)} layers their mean cosine is above {CORRELATED} "
                f"({printable(worst.name)}: {worst.cosine:.2f}), so xi is too small there; "
                f"consider target=sphere (--set {item.name}.target=sphere)"
            )
    return tuple(notes)
