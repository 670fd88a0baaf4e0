"""What calibrators that look at inputs need: the merged model at work on samples, measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from magmerge.checkpoints.kinds import read_model_config
from magmerge.core.errors import MagmergeError
from magmerge.core.parameters import UNIT
from magmerge.core.traits import Calibrator
from magmerge.core.types import Piece, Step, Uncovered
from magmerge.data.rows import Inputs
from magmerge.engine.job import Findings, Work
from magmerge.engine.layer import Calibrated, Merged, calibrate_layer
from magmerge.engine.stages import Treatment
from magmerge.live.coverage import Followed, follow
from magmerge.live.gains import (
    Estimate,
    Listen,
    Measure,
    Sums,
    conclude,
    gains_of,
    listen_to_changes,
    listen_to_inputs,
    measure_forward,
    measure_once,
)
from magmerge.live.merged import AtWork, Changed, put_to_work
from magmerge.live.statistics import reestimate
from magmerge.live.weights import at_rest


def estimate_findings(work: Work, inputs: Mapping[str, Sequence[Inputs]]) -> Findings:
    """Merge into a live model, run it on each expert's inputs, and measure its layers.

    The deltas of one layer at a time are in memory, those of several where several threads run.
    """
    active, samples = put_to_work(work), work.job.recipe.samples
    assert samples is not None
    changes = Changed(work.models, active.weights)
    steps = {step.spec.name: step for step in work.plan.steps}
    holder = {name: step.twin or name for name, step in steps.items()}
    names = {
        name: holder[stored]
        for name, stored in active.names.items()
        if _is_measured(steps[holder[stored]], work)
    }
    layers, blind = follow(active.model, names, _config(active, work))
    missing = [
        Uncovered(name, "the model that was run has no parameter for it")
        for name, step in steps.items()
        if _is_measured(step, work) and name not in names.values()
    ]
    order = {expert.name: place for place, expert in enumerate(work.models.experts)}
    calls = {order[name]: list(batches) for name, batches in inputs.items()}
    bench = Bench(work, steps, active, layers, changes)
    offload = nullcontext() if active.offload is None else active.offload.running()
    with at_rest(active.model), offload:
        sums = _measure(bench, calls, samples.order)
        found = _fitting(conclude(layers, [*missing, *blind], sums, len(order)), steps)
        _check_experts(found, calls, work)
        statistics: Mapping[str, Tensor] = {}
        if samples.batchnorm:
            if samples.order == "once":
                _apply(bench, found)
            statistics = {
                name: tensor
                for name, tensor in reestimate(active.model, calls, active.names).items()
                if steps[name].action == "average" or steps[name].reason == "statistics"
            }
    return Findings(found.gains, bench.deltas, statistics, tuple(found.uncovered))


@dataclass(frozen=True, slots=True)
class Bench:
    """The merged model at work, its layers, and what changed in them."""

    work: Work
    steps: Mapping[str, Step]
    active: AtWork
    layers: Sequence[Followed]
    changes: Changed
    deltas: dict[str, Tensor] = field(default_factory=dict)


def _measure(bench: Bench, calls: Mapping[int, Sequence[Inputs]], order: str) -> Sums:
    machine = bench.work.job.machine
    count = sum(map(len, calls.values()))
    model, layers, changes = bench.active.model, bench.layers, bench.changes
    names = [expert.name for expert in bench.work.models.experts]
    if order == "once":
        done = machine.counter("running the merged model", count)
        measure = _measure_of(bench.work)
        return measure_once(
            model, layers, calls, changes, measure, names, threads=machine.count, done=done
        )
    known: dict[str, Tensor] = {}
    if bench.active.offload is not None:
        bench.active.offload.finish = partial(_finished, bench, known)

    def correct(followed: Followed, sums: Sums) -> None:
        experts = len(bench.work.models.experts)
        for tensor in followed.tensors.values():
            known[tensor] = gains_of(tensor, [followed], sums, experts)
        _set(
            bench,
            followed,
            {name: known[name] for name in followed.tensors.values()},
            sums.take_inputs(followed.layer.name, experts),
        )

    done = machine.counter("calibrating in forward order", len(layers))
    return measure_forward(model, layers, calls, _listener(bench), names, correct, done=done)


def _listener(bench: Bench) -> Listen:
    """What is noted of a layer's calls: the inputs that a calibrator solves from, or gains."""
    item, bound = _hungry(bench.work)
    if item.gather is None:
        return listen_to_changes(bench.changes, _measure_of(bench.work))
    known = {name: value for name, value in bound.items() if name in _keywords_of(item.gather)}
    return listen_to_inputs(partial(item.gather, **known))


def _keywords_of(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _finished(bench: Bench, gains: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    """A tensor that is brought in once more, calibrated as it was before."""
    if name not in gains:
        return tensor
    treatment = bench.work.stages.treatment.inputs_only(gains)
    experts = len(bench.work.models.experts)
    return _calibrated(bench.steps[name], treatment, bench.changes, experts).weight


def _apply(bench: Bench, found: Estimate) -> None:
    """Give the live model the weights that the calibrated one will have."""
    if bench.active.offload is not None:
        bench.active.offload.finish = partial(_finished, bench, found.gains)
        return
    left = dict(found.gains)
    for followed in bench.layers:
        # What several layers share is set with the first.
        own = {name: left.pop(name) for name in followed.tensors.values() if name in left}
        _set(bench, followed, own)


def _set(
    bench: Bench, followed: Followed, gains: Mapping[str, Tensor], inputs: Tensor | None = None
) -> None:
    """Calibrate one layer of the live model; `inputs` are sums over what it is fed."""
    solving = inputs is not None
    sums = dict.fromkeys(gains, inputs) if inputs is not None else None
    treatment = bench.work.stages.treatment.inputs_only(gains, sums)
    experts = len(bench.work.models.experts)
    for local, tensor in followed.tensors.items():
        if tensor in gains:
            parameter = followed.layer.module.get_parameter(local)
            calibrated = _calibrated(bench.steps[tensor], treatment, bench.changes, experts)
            if solving and treatment.of(bench.steps[tensor]):
                bench.deltas[tensor] = calibrated.delta
            with torch.no_grad():
                parameter.copy_(calibrated.weight)


def _calibrated(step: Step, treatment: Treatment, changes: Changed, experts: int) -> Calibrated:
    name, shape = step.spec.name, step.spec.shape
    base, merged = changes.base(name), changes.merged(name)
    deltas = torch.empty(experts, *base.shape)
    for index, delta in enumerate(deltas):
        delta.copy_(changes.expert(index, name))
    piece = Piece(0, base.numel(), shape, UNIT)
    return calibrate_layer(step, piece, treatment, base, deltas, Merged(merged))


def _fitting(found: Estimate, steps: Mapping[str, Step]) -> Estimate:
    """Gains by rows only where the tensor has such rows; one for the tensor elsewhere.

    That a matrix is stored as [in, out] may be known to its module alone.
    """
    gains = dict(found.gains)
    for name, value in gains.items():
        axis = 1 if steps[name].kind == "transposed" else 0
        if value.ndim == 2 and value.shape[1] != steps[name].spec.shape[axis]:
            gains[name] = value.nanmean(dim=1)
    return found._replace(gains=gains)


def _check_experts(found: Estimate, calls: Mapping[int, Sequence[Inputs]], work: Work) -> None:
    """MagmergeError where the samples of an expert tell nothing about any layer."""
    for index in calls:
        if found.gains and not any(
            bool(one[index].isfinite().any()) for one in found.gains.values()
        ):
            raise MagmergeError(
                "on these samples no layer has a finite change in features",
                source=f"the data of {work.models.experts[index].name}",
                remedy="look for NaN and infinity in the samples, and in what the model makes of "
                "them (--precision float32)",
            )
    if not found.gains:
        raise MagmergeError(
            "no layer could be measured: "
            + "; ".join(sorted({one.reason for one in found.uncovered})),
            remedy="look for NaN and infinity in the samples, or give the model that was merged",
        )


def _config(active: AtWork, work: Work) -> Mapping[str, Any]:
    """What is said of the model's sizes: by itself, or by the config.json beside its weights."""
    told = getattr(getattr(active.model, "config", None), "to_dict", None)
    return told() if callable(told) else read_model_config(work.layout)


def _is_measured(step: Step, work: Work) -> bool:
    return any(item.needs == "inputs" for item, _ in work.stages.treatment.of(step))


def _measure_of(work: Work) -> Measure:
    """The calibrator's own measure with the user's parameters."""
    item, bound = _hungry(work)
    measure: Callable[..., Tensor] | None = item.measure
    assert measure is not None

    def with_parameters(expert: Tensor, merged: Tensor) -> Tensor:
        return measure(expert, merged, **bound)

    return with_parameters


def _hungry(work: Work) -> tuple[Calibrator, Mapping[str, Any]]:
    """The calibrator that looks at inputs, and its keywords."""
    return next(one for one in work.stages.treatment.calibrators if one[0].needs == "inputs")
