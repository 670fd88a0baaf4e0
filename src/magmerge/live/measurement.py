"""What calibrators that look at inputs need: the live merge run on samples, its layers measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from magmerge.checkpoints.kinds import read_model_config
from magmerge.core.errors import ParameterError
from magmerge.core.parameters import UNIT, SolvedWeight
from magmerge.core.types import Piece, Uncovered
from magmerge.data.halves import Halves
from magmerge.engine.executors import local
from magmerge.engine.job import Work
from magmerge.engine.layer import Calibrated, Merged, Tally, calibrate_layer
from magmerge.engine.stages import Treatment
from magmerge.linalg.row_norms import as_rows
from magmerge.live.checking import HeldRows
from magmerge.live.coverage import follow
from magmerge.live.expert_runs import ExpertRuns
from magmerge.live.forward import Calls as CallsBeside
from magmerge.live.forward import Following, Side, measure_forward
from magmerge.live.forward import Visit as ForwardVisit
from magmerge.live.gains import (
    Sums,
    Visit,
    gains_of,
    measure_once,
)
from magmerge.live.layers import Layer
from magmerge.live.live_merge import live_merge
from magmerge.live.running_statistics import Calls, reestimate
from magmerge.live.scaling import Scaling
from magmerge.live.share_search import checked
from magmerge.live.visits import note_gains, note_inputs


class Measurement:
    """A live merge, the layers of it that are measured, and what changed in them."""

    def __init__(self, work: Work, aside: HeldRows | None = None) -> None:
        self.work = work
        self.steps = {step.spec.name: step for step in work.plan.steps}
        holders = {name: step.twin or name for name, step in self.steps.items()}
        look = None if aside is None else partial(aside.look, models=work.models, twins=holders)
        self.merge = live_merge(work, look)
        self._room = work.plan.room if aside is None else aside.left
        self.experts = [expert.name for expert in work.models.experts]
        self.deltas: dict[str, Tensor] = {}
        self._sides: tuple[Side, ...] = ()
        self.scaling = Scaling(self.merge, work.stages.treatment.bound)
        self._set_in_order: set[str] = set()
        self._treatment = work.stages.treatment
        if self._treatment.checked:
            self._by_weights()
        self._calibrator, self._params = next(
            (calibrator, params)
            for calibrator, params in self._treatment.calibrators
            if calibrator.needs == "inputs"
        )
        names = {
            name: holders[tensor]
            for name, tensor in self.merge.names.items()
            if self._is_measured(holders[tensor])
        }
        # What is said of the model's sizes: by itself, or by the config.json beside its weights.
        own = getattr(getattr(self.merge.model, "config", None), "to_dict", None)
        config = own() if callable(own) else read_model_config(work.layout)
        self.layers, blind = follow(self.merge.model, names, config)
        self.uncovered = [
            Uncovered(name, "the model that was run has no parameter for it")
            for name in self.steps
            if self._is_measured(name) and name not in names.values()
        ]
        self.uncovered += blind

    def _is_measured(self, tensor: str) -> bool:
        calibrators = self._treatment.of(self.steps[tensor])
        return any(calibrator.needs == "inputs" for calibrator, _ in calibrators)

    def measure(self, calls: Calls, order: str) -> Sums:
        """Gains of all layers as they are, or in forward order, each before those after it."""
        run, machine = (self.merge.model, self.layers, calls), self.work.job.machine
        if order == "once":
            return measure_once(*run, self._visit_changes(), self.experts, machine, self._room)
        known: dict[str, Tensor] = {}
        if self.merge.offload is not None:
            self.merge.offload.finish = partial(self._finish, known)
        count, solves = len(self.experts), self._calibrator.gather is not None

        def correct(layer: Layer, sums: Sums) -> None:
            if solves:
                self._solve(layer, sums.take_inputs(layer.name, count))
                return
            tensors = layer.tensors.values()
            gains = {name: gains_of(name, [layer], sums, count) for name in tensors}
            known.update(gains)
            self._set(layer, gains)

        return self.forward(calls, correct)

    def forward(self, calls: Calls, correct: Callable[[Layer, Sums], None]) -> Sums:
        """Measure in forward order, the experts beside; `correct` is told of each layer's sums."""
        merge, machine = Following(self.merge.model, self.layers), self.work.job.machine
        sides = self._sides or (Side(dict.fromkeys(calls, merge)),)
        return measure_forward(merge, sides, calls, self._visit(), self.experts, machine, correct)

    @contextmanager
    def experts_beside(self) -> Iterator[None]:
        """Within it each expert can be run, where the calibrator looks at what it is fed."""
        fed_by = self._calibrator.fed_by
        if fed_by == "merge":
            yield
            return
        runs = ExpertRuns(self.work, self.merge)
        copies = {place: runs.following(place, self.layers) for place in range(len(self.experts))}
        own = Side(dict.fromkeys(copies, Following(self.merge.model, self.layers)))
        self._sides = (Side(copies),) if fed_by == "experts" else (own, Side(copies))
        with runs.running():
            yield

    def _visit(self) -> ForwardVisit:
        """What is noted of a layer's calls: the inputs that a calibrator solves from, or gains."""
        gather = self._calibrator.gather
        if gather is not None:
            keywords = self._params.keys() & inspect.signature(gather).parameters.keys()
            return partial(note_inputs, partial(gather, **{n: self._params[n] for n in keywords}))
        visit = self._visit_changes()

        def alone(sums: Sums, layer: Layer, calls: CallsBeside) -> None:
            visit(sums, layer, {k: [call for (call,) in own] for k, own in calls.items()})

        return alone

    def _visit_changes(self) -> Visit:
        measure = self._calibrator.measure
        assert measure is not None
        known = inspect.signature(measure).parameters
        several = any(each.kind is each.VAR_KEYWORD for each in known.values())
        params = {n: v for n, v in self._params.items() if several or n in known}
        machine = self.work.job.machine
        return partial(note_gains, self.merge, partial(measure, **params), machine)

    def _finish(self, gains: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
        """A tensor that is brought in once more, calibrated as it was before."""
        if name in self.deltas:
            return self.merge.base(name) + self.deltas[name]
        if name not in gains:
            return tensor
        return self._calibrated(name, self._treatment.inputs_only(gains)).weight

    def _by_weights(self) -> None:
        """Give the live merge what calibrators do from weights alone, and keep the factors."""
        treatment = self._treatment.weights_only()
        names = [n for n, step in self.steps.items() if step.twin is None and treatment.of(step)]
        if names and self.merge.offload is not None:
            told = " and ".join(item.name for item, _ in treatment.calibrators)
            raise ParameterError(
                f"the check takes {told} back too, for which an offloaded model has no weights",
                remedy="calibrate with --set fsc.check=off, or leave --offload out",
            )
        for name in names:
            if name in self.merge.weights and self.steps[name].whole is None:
                calibrated = self._calibrated(name, treatment)
                self.scaling.note(self.steps[name], calibrated)
                self.scaling.put(name, calibrated.weight)

    def check(
        self, gains: Mapping[str, Tensor], calls: Calls, halved: Halves, aside: HeldRows
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """How much of its factors each tensor keeps, and what is to be told of that; the live merge
        has the weights that come of it.
        """
        treatment = self._treatment.inputs_only(gains)
        measured = [n for n in gains if self.steps[n].whole is None and n not in self._set_in_order]
        with local.one_thread_an_operation():
            for name in measured:
                self.scaling.note(self.steps[name], self._calibrated(name, treatment))
        samples, names = self.work.job.recipe.samples, self.merge.names
        assert samples is not None

        def measures(shares: Mapping[str, float]) -> Tensor:
            self.scaling.set(shares)
            if samples.batchnorm:
                reestimate(self.merge.model, calls, names)
            seen = aside.look_at(self.merge.model, "calibrated")
            if not any(shares.values()):
                aside.seen["merge"] = seen
            return seen.measures

        return checked(self.scaling.factors, measures, halved)

    def apply(self, gains: Mapping[str, Tensor]) -> None:
        """Give the live merge the weights that the calibrated one will have."""
        if self.merge.offload is not None:
            self.merge.offload.finish = partial(self._finish, gains)
            return
        left = dict(gains)
        for layer in self.layers:
            # What several layers share is set with the first.
            own = {name: left.pop(name) for name in layer.tensors.values() if name in left}
            self._set(layer, own)

    def _set(self, layer: Layer, gains: Mapping[str, Tensor]) -> None:
        """Calibrate one layer of the live merge."""
        treatment = self._treatment.inputs_only(gains)
        for parameter, tensor in layer.tensors.items():
            if tensor in gains:
                calibrated = self._calibrated(tensor, treatment)
                self.scaling.note(self.steps[tensor], calibrated)
                self._set_in_order.add(tensor)
                self._put(layer, parameter, calibrated.weight)
                self.scaling.took(tensor, layer.module.get_parameter(parameter))

    def _solve(self, layer: Layer, inputs: Tensor | None) -> None:
        """Solve for one layer of the live merge from sums over what it is fed, where it has any."""
        weight = layer.tensors.get("weight")
        if inputs is None or weight is None:
            return
        calibrated = self._calibrated(weight, self._treatment.inputs_only({}, {weight: inputs}))
        changed, bias = {"weight": (weight, calibrated)}, layer.tensors.get("bias")
        if bias is not None and self._calibrator.bias is not None:
            changed["bias"] = (bias, self._solved_bias(bias, weight, calibrated.delta, inputs))
        for parameter, (tensor, own) in changed.items():
            self.deltas[tensor] = own.delta
            if self.merge.offload is None or self._calibrator.fed_by != "experts":
                # Where the merged model does not run beside the experts its block is not here.
                self._put(layer, parameter, own.weight)

    def _solved_bias(self, name: str, weight: str, delta: Tensor, inputs: Tensor) -> Calibrated:
        """A bias after its weight, whose new task vector is `delta`."""
        assert self._calibrator.bias is not None
        base, _, deltas = self._read(weight)
        turned = self.steps[weight].kind == "transposed"
        own = (as_rows(t.T if turned else t) for t in (base, delta))
        several = torch.stack([as_rows(t.T if turned else t) for t in deltas])
        matrix, solved = own
        base, merged, biases = self._read(name)
        found = self._calibrator.bias(
            biases, merged, sums=inputs, weight=SolvedWeight(matrix, several, solved),
            **self._params,
        )  # fmt: skip
        return Calibrated(base + found, found, Tally())

    def _put(self, layer: Layer, parameter: str, weight: Tensor) -> None:
        with torch.no_grad():
            layer.module.get_parameter(parameter).copy_(weight)

    def _calibrated(self, name: str, treatment: Treatment) -> Calibrated:
        base, merged, deltas = self._read(name)
        step = self.steps[name]
        piece = Piece(0, base.numel(), step.spec.shape, UNIT)
        return calibrate_layer(step, piece, treatment, base, deltas, Merged(merged))

    def _read(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The base's tensor, the merge's task vector, and the experts' [K, *shape]."""
        base = self.merge.base(name)
        merged = self.merge.merged(name, base)
        deltas = torch.empty(len(self.experts), *base.shape)
        for index, delta in enumerate(deltas):
            delta.copy_(self.merge.expert(index, name, base))
        return base, merged, deltas
