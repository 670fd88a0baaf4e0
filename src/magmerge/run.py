"""Carry out a plan: read each layer by pieces, hand them to layer.py, give results to a sink."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magmerge import dtypes, journal, registry
from magmerge.binding import Bound
from magmerge.checkpoints.writer import Sink
from magmerge.device import Device
from magmerge.draws import derive_seed
from magmerge.errors import NonFiniteError, printable
from magmerge.executors import local
from magmerge.executors.local import Job, Task
from magmerge.layer import Merged, Tally, calibrate_layer, merge_layer, record_of
from magmerge.memory import bytes_of
from magmerge.models import Sources
from magmerge.pieces import cut, cut_for, stretches
from magmerge.planning import UNCHANGED
from magmerge.reading import Reader
from magmerge.types import LayerRecord, Method, Piece, Plan, Step, Survey

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Work:
    """A plan with everything that its steps need.

    `statistics`: running means and variances that were taken anew, by name.
    """

    plan: Plan
    bound: Bound
    sources: Sources
    reader: Reader
    device: Device
    seed: int
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class Carried(NamedTuple):
    """What a reader should know of a tensor that was carried over; None if nothing."""

    note: str | None


def execute(
    work: Work, sink: Sink, *, threads: int, progress: Progress | None = None
) -> tuple[list[LayerRecord], list[str]]:
    """Give every output tensor to `sink`.

    Returns the records of the tensors that were changed, and what a reader should know of those
    that were carried over, both in the order of the plan.
    """
    survey = survey_model(work, threads, progress)
    return treat(work, survey, sink, threads=threads, progress=progress)


def treat(
    work: Work,
    survey: Survey | None,
    sink: Sink,
    *,
    threads: int,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
) -> tuple[list[LayerRecord], list[str]]:
    """The same with what is known of the whole model, for all tensors or for those in `only`."""
    twins: dict[str, list[Step]] = {}
    for step in work.plan.steps:
        if step.twin is not None:
            twins.setdefault(step.twin, []).append(step)
    steps = [
        step
        for step in work.plan.steps
        if step.twin is None and (only is None or step.spec.name in only)
    ]
    label = "calibrating" if work.bound.method is None else "merging"
    outcomes = local.run(
        (treat_layer(work, step, twins.get(step.spec.name, []), survey, sink) for step in steps),
        threads=threads,
        room=work.plan.room,
        done=counter(label, len(steps), progress),
    )
    records = [outcome for outcome in outcomes if isinstance(outcome, LayerRecord)]
    notes = [outcome.note for outcome in outcomes if isinstance(outcome, Carried) and outcome.note]
    return records, notes


def treat_layer(
    work: Work, step: Step, twins: list[Step], survey: Survey | None, sink: Sink
) -> Task[LayerRecord | Carried]:
    """One layer: its survey, if its method makes one, then its pieces."""
    if step.spec.name in work.statistics:
        yield [Job(0, partial(_put, work, step, twins, sink))]
        return Carried(None)
    if step.action == "carry":
        pieces = cut(step.spec.shape, step.kind, "entries", work.plan.piece)
        bad = yield _jobs(work, step, pieces, partial(_carry, work, step, twins, sink))
        return Carried(_note_of(work, step, [count for part in bad for count in part]))
    found: Mapping[str, Any] | None = None
    if work.bound.method is not None and step.action == "merge":
        own = survey or _survey_for(work, step)
        if own is not None and own.scope == "layer":
            yield from _survey_layer(work, step, own)
        found = None if own is None else own.found(step.spec.name)
    pieces = cut_for(step, work.bound, work.plan.piece)
    tallies = yield _jobs(work, step, pieces, partial(_merge, work, step, twins, sink, found))
    return record_of(step, work.bound.treatment, [tally for part in tallies for tally in part])


def _jobs(
    work: Work, step: Step, pieces: Sequence[Piece], treat: Callable[[Piece], Any]
) -> list[Job]:
    """A job for each stretch of pieces; its result is the list of the pieces' results."""
    size = bytes_of(step, work.bound, len(work.sources.experts), pieces)

    def call(stretch: list[Piece]) -> list[Any]:
        with work.device.queue():
            return [treat(piece) for piece in stretch]

    return [Job(size, partial(call, stretch)) for stretch in stretches(pieces)]


def _put(work: Work, step: Step, twins: list[Step], sink: Sink) -> None:
    """Write statistics that are known already."""
    tensor = _cast(work.statistics[step.spec.name], step)
    for one in (step, *twins):
        sink.write(one, 0, tensor)


def _carry(work: Work, step: Step, twins: list[Step], sink: Sink, piece: Piece) -> tuple[int, int]:
    """Copy a piece of the layout's own tensor; how many of its entries are NaN and infinite."""
    tensor = work.sources.layout.read_part(step.spec.name, piece.start, piece.stop)
    nans = infinities = 0
    dtype = dtypes.torch_dtype(step.spec.dtype)
    if tensor.is_floating_point():
        if not math.isfinite(float(tensor.sum(dtype=torch.float64))):
            nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        tensor = tensor.to(dtype) if nans or infinities else _cast(tensor, step)
    for one in (step, *twins):
        sink.write(one, piece.start, tensor)
    return nans, infinities


def _note_of(work: Work, step: Step, counts: Iterable[tuple[int, int]]) -> str | None:
    """What to say of a carried tensor that is not finite: attention masks hold infinity."""
    totals = [sum(column) for column in zip(*counts, strict=True)] or [0, 0]
    if not any(totals):
        return None
    name, source = printable(step.spec.name), work.sources.layout.source
    bad = f"{totals[0]} NaN and {totals[1]} infinite of {math.prod(step.spec.shape)} values"
    return f"{name} of {source} is carried over with {bad}"


def _merge(
    work: Work,
    step: Step,
    twins: list[Step],
    sink: Sink,
    found: Mapping[str, Any] | None,
    piece: Piece,
) -> Tally:
    """Merge and calibrate one piece, and write it."""
    base = work.reader.base(step, piece)
    with journal.listening() as notes:
        if work.bound.method is None:
            deltas = work.reader.experts(step, piece, base, "deltas")
            weight = work.reader.merged(step, piece)
            merged = Merged(weight - base, weight)
        else:
            method, bound = method_for(work, step, piece, found, base)
            seen = found is not None
            tensors = work.reader.experts(step, piece, base, method.acts_on, seen=seen)
            merged = merge_layer(step, method, bound, base, tensors)
            deltas = tensors if method.acts_on == "deltas" else tensors - base
        result, tally = calibrate_layer(step, piece, work.bound.treatment, base, deltas, merged)
    part = work.device.take(_cast(result, step))
    for one in (step, *twins):
        sink.write(one, piece.start, part)
    return replace(tally, notes=tuple(notes))


def method_for(
    work: Work, step: Step, piece: Piece, found: Mapping[str, Any] | None, base: Tensor
) -> tuple[Method, dict[str, Any]]:
    """The method for this layer, and its function's keywords for this piece."""
    assert work.bound.method is not None
    method, bound = work.bound.method, dict(work.bound.keywords_at(step))
    if step.action == "average":
        return registry.methods.get("average"), {}
    if step.action == "mean":
        return registry.methods.get("task_arithmetic"), {
            "lambda_": bound.get("lambda_", 1.0),
            "normalize": True,
        }
    if method.random:
        bound["seeds"] = _seeds(work, step)
    if "start" in method.supplied:
        bound["start"] = piece.start
    if "base" in method.supplied:
        bound["base"] = base
    return method, {**bound, **(found or {})}


def _survey_for(work: Work, step: Step) -> Survey | None:
    """The method's survey with these parameters, for this layer."""
    method = work.bound.method
    if method is None or method.survey is None:
        return None
    bound = {**work.bound.keywords_at(step), "experts": len(work.sources.experts)}
    bound["unchanged"] = sum(
        math.prod(one.spec.shape) for one in work.plan.steps if one.reason == UNCHANGED
    )
    if method.random:
        bound["seeds"] = _seeds(work, step)
    return method.survey(entries=math.prod(step.spec.shape), **bound)


def _seeds(work: Work, step: Step) -> list[int]:
    """One for each expert."""
    count = range(len(work.sources.experts))
    return [derive_seed(work.seed, step.spec.name, k) for k in count]


def _survey_layer(work: Work, step: Step, survey: Survey) -> Task[None]:
    """Everything that the method must know of this layer before its pieces are merged."""
    if survey.samples:
        size = 3 * survey.samples * len(work.sources.experts) * (8 if step.wide else 4)
        yield [Job(size, partial(_sample, work, step, survey))]
    pieces = cut(step.spec.shape, "other", "entries", work.plan.piece)
    while survey.passes:
        wanted = [p for p in pieces if survey.wants(step.spec.name, p.start, p.stop)]
        yield _jobs(work, step, wanted, partial(_observe, work, step, survey))
        yield [Job(0, survey.conclude)]


def _sample(work: Work, step: Step, survey: Survey) -> None:
    assert work.bound.method is not None
    with work.device.queue():
        survey.prepare(work.reader.sample(step, work.bound.method.acts_on, survey.samples))


def survey_model(work: Work, threads: int, progress: Progress | None) -> Survey | None:
    """Whole-model statistics, where the method with these parameters needs them."""
    if work.bound.method is None:
        return None
    steps = [step for step in work.plan.steps if step.action == "merge"]
    survey = _survey_for(work, steps[0]) if steps else None
    if survey is None or survey.scope != "model":
        return None
    sweep = 0
    while survey.passes:
        sweep += 1
        wanted = [s for s in steps if survey.wants(s.spec.name, 0, math.prod(s.spec.shape))]
        local.run(
            (_observe_layer(work, step, survey) for step in wanted),
            threads=threads,
            room=work.plan.room,
            done=counter(f"surveying, sweep {sweep}", len(wanted), progress),
        )
        survey.conclude()
    return survey


def _observe_layer(work: Work, step: Step, survey: Survey) -> Task[None]:
    pieces = cut(step.spec.shape, "other", "entries", work.plan.piece)
    yield _jobs(work, step, pieces, partial(_observe, work, step, survey))


def _observe(work: Work, step: Step, survey: Survey, piece: Piece) -> None:
    assert work.bound.method is not None
    base = work.reader.base(step, piece)
    tensors = work.reader.experts(step, piece, base, work.bound.method.acts_on)
    survey.observe(step.spec.name, piece.start, tensors)


def _cast(tensor: Tensor, step: Step) -> Tensor:
    """The one cast; NonFiniteError where a value is too large for the output's format."""
    dtype = dtypes.torch_dtype(step.spec.dtype)
    cast = tensor.to(dtype)
    if not tensor.numel():
        return cast
    least, greatest = (float(bound) for bound in torch.aminmax(tensor))
    # NaN fails this comparison too.
    if not (max(-least, greatest) <= torch.finfo(dtype).max or bool(cast.isfinite().all())):
        raise NonFiniteError(
            f"a value is too large for {dtypes.torch_name(step.spec.dtype)}",
            tensor=step.spec.name,
            source="the result",
            remedy="merge with a smaller lambda or smaller weights"
            + (", or write bfloat16 or float32 with --dtype" if dtype == torch.float16 else ""),
        )
    return cast


def counter(label: str, total: int, progress: Progress | None) -> Callable[[object], None] | None:
    """What a run of jobs calls after each, so that `progress` hears of it."""
    if progress is None:
        return None
    count = 0

    def done(_: object) -> None:
        nonlocal count
        count += 1
        progress(label, count, total)

    return done
