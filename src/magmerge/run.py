"""Carry out a plan: read each layer, hand it to layer.py, give the result to a sink."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from magmerge import dtypes, registry
from magmerge.checkpoints.writer import Sink
from magmerge.draws import derive_seed
from magmerge.errors import NonFiniteError, printable
from magmerge.executors import local
from magmerge.layer import Merged, Treatment, calibrate_layer, merge_layer
from magmerge.recipe import Recipe, keywords
from magmerge.types import LayerRecord, Method, Plan, Sources, Step, Survey

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Work:
    """A plan with everything that its steps need, bound once."""

    plan: Plan
    sources: Sources
    method: Method | None
    keywords: Mapping[str, Any]
    treatment: Treatment
    seed: int


def bind(recipe: Recipe, sources: Sources, plan: Plan) -> Work:
    """Look up the recipe's method and calibrators and their functions' keywords."""
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    calibrators = [(registry.calibrators.get(c.method), c.params) for c in recipe.calibrate]
    treatment = Treatment(
        tuple((item, keywords(item, params)) for item, params in calibrators),
        gated=recipe.gate == "on",
    )
    bound = {} if method is None else keywords(method, recipe.params)
    return Work(plan, sources, method, bound, treatment, recipe.seed)


def execute(
    work: Work, sink: Sink, *, threads: int, progress: Progress | None = None
) -> tuple[list[LayerRecord], list[str]]:
    """Give every output tensor to `sink`.

    Returns the records of the tensors that were changed, and what a reader should know of those
    that were carried over, both in the order of the plan.
    """
    survey = _conduct_survey(work, threads, progress)
    twins: dict[str, list[Step]] = {}
    for step in work.plan.steps:
        if step.twin is not None:
            twins.setdefault(step.twin, []).append(step)
    steps = [step for step in work.plan.steps if step.twin is None]
    label = "calibrating" if work.method is None else "merging"
    outcomes = local.run(
        (
            partial(_finish, work, step, twins.get(step.spec.name, []), survey, sink)
            for step in steps
        ),
        threads=threads,
        done=counter(label, len(steps), progress),
    )
    records = [outcome for outcome in outcomes if isinstance(outcome, LayerRecord)]
    return records, [outcome for outcome in outcomes if isinstance(outcome, str)]


def _finish(
    work: Work, step: Step, twins: list[Step], survey: Survey | None, sink: Sink
) -> LayerRecord | str | None:
    outcome: LayerRecord | str | None
    if step.action == "carry":
        tensor, outcome = _carry(work, step)
    else:
        tensor, outcome = _treat(work, step, survey)
        tensor = _cast(tensor, step)
    for one in (step, *twins):
        sink.write(one, tensor)
    return outcome


def _carry(work: Work, step: Step) -> tuple[Tensor, str | None]:
    """The layout's own tensor, and a note if it is not finite: attention masks hold infinity."""
    source = work.sources.layout
    tensor = source.read(step.spec.name)
    # What is in memory is the caller's own, and stays so.
    tensor = tensor if source.files else tensor.clone()
    if not tensor.is_floating_point():
        return tensor, None
    if bool(tensor.isfinite().all()):
        return _cast(tensor, step), None
    name, bad = printable(step.spec.name), _count_of_bad(tensor)
    note = f"{name} of {source.source} is carried over with {bad}"
    return tensor.to(dtypes.torch_dtype(step.spec.dtype)), note


def _treat(work: Work, step: Step, survey: Survey | None) -> tuple[Tensor, LayerRecord]:
    base = _read_base(work, step)
    if work.method is None:
        deltas = _read_experts(work, step, base, "deltas")
        weight = _read_merged(work, step, base.dtype)
        return calibrate_layer(step, work.treatment, base, deltas, Merged(weight - base, weight))
    method, bound = work.method, dict(work.keywords)
    if step.action == "average":
        method, bound = registry.methods.get("average"), {}
    if method.random:
        count = range(len(work.sources.experts))
        bound["seeds"] = [derive_seed(work.seed, step.spec.name, k) for k in count]
    if survey is not None and step.action == "merge":
        bound.update(survey.for_layer(step.spec.name))
    tensors = _read_experts(work, step, base, method.acts_on)
    merged = merge_layer(method, bound, base, tensors)
    deltas = tensors if method.acts_on == "deltas" else tensors - base
    return calibrate_layer(step, work.treatment, base, deltas, merged)


def _conduct_survey(work: Work, threads: int, progress: Progress | None) -> Survey | None:
    """Whole-model statistics, where the method with these parameters needs them."""
    if work.method is None or work.method.survey is None:
        return None
    survey = work.method.survey(experts=len(work.sources.experts), **work.keywords)
    if survey is None:
        return None
    steps = [step for step in work.plan.steps if step.action == "merge"]

    def observe(sweep: int, step: Step) -> None:
        base = _read_base(work, step)
        survey.observe(sweep, step.spec.name, _read_experts(work, step, base, "deltas"))

    for sweep in range(survey.passes):
        local.run(
            (partial(observe, sweep, step) for step in steps),
            threads=threads,
            done=counter(f"surveying ({sweep + 1}/{survey.passes})", len(steps), progress),
        )
        survey.conclude(sweep)
    return survey


def _read_base(work: Work, step: Step) -> Tensor:
    """The base's tensor in the dtype of the arithmetic: float32, or float64 for a float64 model."""
    name, sources = step.spec.name, work.sources
    source = sources.layout if sources.base is None else sources.base
    wide = "F64" in (source.specs[name].dtype, sources.layout.specs[name].dtype)
    dtype = torch.float64 if wide else torch.float32
    if sources.base is None:
        return torch.zeros(source.specs[name].shape, dtype=dtype)
    base = source.read(name).to(dtype)
    _check_finite(base, name, source.source, of_base=True)
    return base


def _read_merged(work: Work, step: Step, dtype: torch.dtype) -> Tensor:
    source = work.sources.layout
    weight = source.read(step.spec.name).to(dtype)
    _check_finite(weight, step.spec.name, source.source)
    return weight


def _read_experts(work: Work, step: Step, base: Tensor, acts_on: str) -> Tensor:
    """[K, *shape]: the experts' task vectors or weights."""
    experts = work.sources.experts
    tensors = torch.empty((len(experts), *base.shape), dtype=base.dtype)
    for expert, tensor in zip(experts, tensors, strict=True):
        read = expert.weight if acts_on == "weights" else expert.delta
        tensor.copy_(read(step.spec.name, base))
        _check_finite(tensor, step.spec.name, expert.source)
    return tensors


def _check_finite(tensor: Tensor, name: str, source: str, *, of_base: bool = False) -> None:
    if bool(tensor.isfinite().all()):
        return
    raise NonFiniteError(
        _count_of_bad(tensor),
        source=source,
        tensor=name,
        remedy="use a sound copy of this model"
        + ("" if of_base else f", or keep the base's tensor: --ignore {name} (ignore=)"),
    )


def _count_of_bad(tensor: Tensor) -> str:
    nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{nans} NaN and {infinities} infinite of {tensor.numel()} values"


def _cast(tensor: Tensor, step: Step) -> Tensor:
    """The one cast; NonFiniteError where a value is too large for the output's format."""
    cast = tensor.to(dtypes.torch_dtype(step.spec.dtype))
    if not bool(cast.isfinite().all()):
        raise NonFiniteError(
            f"a value is too large for {dtypes.torch_name(step.spec.dtype)}",
            tensor=step.spec.name,
            source="the result",
            remedy="write bfloat16 or float32 with --dtype, or merge with a smaller lambda",
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
