"""A pass: every step of a plan, in any order, into one sink."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from magmerge.checkpoints.output.writer import Sink
from magmerge.core.lazy import load
from magmerge.core.traits import Survey
from magmerge.core.types import Step
from magmerge.engine.executors import local
from magmerge.engine.executors.local import Task
from magmerge.engine.form import form_of
from magmerge.engine.job import Work
from magmerge.engine.reader import Reader
from magmerge.engine.step_method import survey_for
from magmerge.engine.steps import Bench, Outcome, merged_step, observed, run_step

if TYPE_CHECKING:
    from magmerge.linalg.survey import SurveysApart

SurveyKind = TypeVar("SurveyKind", bound=Survey)


def bench_for(work: Work, sink: Sink) -> Bench:
    """What the steps of a pass share, after the survey of the whole model, where there is one."""
    twins: dict[str, list[Step]] = {}
    for step in work.plan.steps:
        if step.twin is not None:
            twins.setdefault(step.twin, []).append(step)
    bench = Bench(work, Reader(work.job), sink, twins, orders=getattr(work.layout, "order", {}))
    bench = replace(bench, survey=_survey(bench))
    return bench if bench.survey is not None else replace(bench, surveys=_surveys_by_tensor(bench))


def run_pass(
    bench: Bench,
    only: Collection[str] | None = None,
    *,
    finish: Callable[[Step, Outcome], None] | None = None,
    quiet: bool = False,
) -> list[tuple[Step, Outcome]]:
    """Every step with its outcome in the order of the plan, or those whose keys are in `only`.

    `finish` is told of each as soon as all of it is written. A `quiet` pass shows no progress.
    """
    work = bench.work
    steps = [
        step for step in work.plan.steps if step.twin is None and (only is None or step.key in only)
    ]
    if work.job.writes_adapter:
        steps = [step for step in steps if step.action != "carry"]
    outcomes = local.run(
        (_finished(bench, step, finish) for step in steps),
        work.job.machine,
        room=work.plan.room,
        done=None if quiet else work.job.machine.counter(_label(work), len(steps)),
    )
    return list(zip(steps, outcomes, strict=True))


def _finished(
    bench: Bench, step: Step, finish: Callable[[Step, Outcome], None] | None
) -> Task[Outcome]:
    outcome = yield from _task(bench, step)
    bench.reader.give_back(step)
    if finish is not None:
        finish(step, outcome)
    return outcome


def _label(work: Work) -> str:
    """What the pass is called while it runs."""
    if not work.job.takes:
        return "merging" if work.models.merged is None else "calibrating"
    return "writing" if work.models.base is None else "extracting"


def _task(bench: Bench, step: Step) -> Task[Outcome]:
    """What is done for a step: a tensor of a model, or a module of an adapter."""
    form = form_of(bench.work.job)
    if form is None or step.action == "average":
        return run_step(bench, step)
    return form.run(bench, step)


def _survey(bench: Bench) -> Survey | None:
    """Whole-model statistics, where the method with these parameters needs them."""
    work = bench.work
    whole = [merged_step(work, step) for step in work.plan.steps]
    steps: Sequence[Step] = [step for step in whole if step.action == "merge"]
    own = survey_for(work, steps[0]) if steps else None
    if own is None or own.scope != "model":
        return None
    if any(step.voters is not None for step in steps):
        return _swept(bench, _apart(work, steps), steps)
    survey = survey_for(work, _together(steps[0], steps))
    assert survey is not None
    return _swept(bench, survey, steps)


def _surveys_by_tensor(bench: Bench) -> dict[str, Survey]:
    """Of tensors whose rows have different voters what is known of all the rows of an expert, where
    the method looks at each expert by itself.
    """
    work, method = bench.work, bench.work.stages.method
    tensors: dict[str, list[Step]] = {}
    for step in work.plan.steps:
        if step.whole is not None and step.action == "merge" and method and method.apart:
            tensors.setdefault(step.tensor_key, []).append(step)
    surveys: dict[str, Survey] = {}
    for key, steps in tensors.items():
        if survey_for(work, steps[0]) is None:
            continue
        surveys[key] = _swept(bench, _apart(work, steps), steps)
    return surveys


def _together(first: Step, steps: Sequence[Step]) -> Step:
    """A step like the `first`, with as many entries as all these have; at least one."""
    total = sum(math.prod(step.spec.shape) for step in steps)
    return replace(first, spec=replace(first.spec, shape=(max(1, total),)))


def _apart(work: Work, steps: Sequence[Step]) -> SurveysApart:
    """A survey for each expert, of the rows of these steps that it has."""
    surveys = []
    for place in range(len(work.models.experts)):
        own = _together(steps[0], _steps_of(work, steps, place))
        surveys.append(survey_for(work, replace(own, voters=(place,))))
    apart: SurveysApart = load("magmerge.linalg.survey:SurveysApart")(surveys)
    return apart


def _steps_of(work: Work, steps: Sequence[Step], expert: int) -> list[Step]:
    """The steps whose rows an expert has, as steps of its own."""
    return [replace(step, voters=(expert,)) for step in steps if expert in work.voters(step)]


def _swept(bench: Bench, survey: SurveyKind, steps: Sequence[Step]) -> SurveyKind:
    """The survey after a look at a sample of these steps, and after all its sweeps over them."""
    of: Callable[[Sequence[int]], Survey] | None = getattr(survey, "of", None)
    if of is None:
        _sample(bench, survey, steps)
    else:
        for place in range(len(bench.work.models.experts)):
            own = _steps_of(bench.work, steps, place)
            if own:
                _sample(bench, of([place]), own)
    _sweep(bench, survey, steps)
    return survey


def _sample(bench: Bench, survey: Survey, steps: Sequence[Step]) -> None:
    """Let a survey look at some entries of these steps."""
    method = bench.work.stages.method
    assert method is not None
    if survey.samples:
        with bench.work.job.device.queue():
            survey.prepare(bench.reader.sample(steps, method.acts_on, survey.samples))


def _sweep(bench: Bench, survey: Survey, steps: Sequence[Step]) -> None:
    """All sweeps of a survey over these steps."""
    work, sweep = bench.work, 0
    while survey.passes:
        sweep += 1
        seen = [
            s
            for s in steps
            if survey.wants(s.tensor_key, s.first, s.first + math.prod(s.spec.shape))
        ]
        local.run(
            (observed(bench, step, survey) for step in seen),
            work.job.machine,
            room=work.plan.room,
            done=work.job.machine.counter(f"surveying, sweep {sweep}", len(seen)),
        )
        survey.conclude()
