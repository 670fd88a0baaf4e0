"""By how much a merged model's layers fall short of the experts' on what they are fed."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from magmerge.core.machine import Machine
from magmerge.core.types import Uncovered
from magmerge.data.rows import Inputs
from magmerge.engine.executors import local
from magmerge.live.calls import Listener, Observation
from magmerge.live.layers import Call, Layer, NotLinearError, TokenLayer, tokens_of
from magmerge.live.live_merge import LiveMerge
from magmerge.live.lockstep import Arrivals, in_lockstep

Measure = Callable[[Tensor, Tensor], Tensor]
"""From the expert's change and the merge's, [tokens, features], to a gain for each token."""
Gather = Callable[[Tensor], Tensor]
"""From a layer's inputs, [tokens, features], to what is summed up over all tokens."""


class GainEstimate(NamedTuple):
    """Gains [K] or [K, rows] of each tensor, NaN where nothing was seen; what could not be seen."""

    gains: Mapping[str, Tensor]
    uncovered: Sequence[Uncovered]


class Sums:
    """Sums and counts of gains, of each layer's parts and each expert, added in a fixed order.

    `failed`: layers that could not be measured, and why; `called`: those that samples came to. In
    forward order `settled` maps tensors to the layers they were calibrated with, and `late` holds
    layers that some runs came to when they were settled already.
    """

    def __init__(self) -> None:
        self._gains: dict[tuple[str, int, int], list[tuple[float, int]]] = defaultdict(list)
        self.failed: dict[str, str] = {}
        self.called: set[str] = set()
        self.settled: dict[str, str] = {}
        self.late: set[str] = set()
        self._inputs: dict[tuple[str, int], Tensor] = {}

    def add_inputs(self, layer: str, expert: int, part: Tensor) -> None:
        """Add what was gathered from one run's inputs; the layer counts as measured."""
        known = self._inputs.get((layer, expert))
        self._inputs[layer, expert] = part if known is None else known + part
        self._gains[layer, 0, expert].append((1.0, 1))

    def take_inputs(self, layer: str, experts: int) -> Tensor | None:
        """The sums [K, ...] over a layer's inputs, which are forgotten: they are large."""
        held = {
            k: self._inputs.pop((layer, k)) for k in range(experts) if (layer, k) in self._inputs
        }
        if not held:
            return None
        empty = torch.zeros_like(next(iter(held.values())))
        return torch.stack([held.get(k, empty) for k in range(experts)])

    def add(self, layer: str, part: int, expert: int, gains: Tensor) -> None:
        """Take note of the gains of some tokens; those that are zero or not finite tell nothing."""
        known = gains[gains.isfinite() & (gains > 0)].double()
        self._gains[layer, part, expert].append((float(known.sum()), known.numel()))

    def join(self, other: Sums) -> None:
        """Add what another run found."""
        for key, values in other._gains.items():
            self._gains[key] += values
        self.failed.update(other.failed)
        self.called |= other.called

    def measured_by(self, layer: str) -> set[int]:
        """The experts whose samples came to a layer while it was measured."""
        return {expert for name, _, expert in self._gains if name == layer}

    def mean(self, layers: Sequence[str], part: int, expert: int) -> float:
        """The mean gain over the tokens that came to any of `layers`; NaN if there was none."""
        values = [value for name in layers for value in self._gains.get((name, part, expert), ())]
        count = sum(number for _, number in values)
        return math.fsum(total for total, _ in values) / count if count else math.nan


Listen = Callable[[Sums, int, Layer, Call], None]
"""Takes note of one call of a layer, by an expert's samples."""


def measure_once(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: Mapping[int, Sequence[Inputs]],
    listen: Listen,
    names: Sequence[str],
    machine: Machine,
) -> Sums:
    """Run the model once on each expert's inputs and measure every layer as it is.

    Runs are side by side, each in one thread, so that results do not depend on how many there are.
    """
    observation = Observation(model, layers)

    def run(expert: int, call: Inputs) -> Sums:
        sums = Sums()
        observation.run(call, partial(listen, sums, expert), names[expert])
        return sums

    calls = [partial(run, expert, call) for expert, many in inputs.items() for call in many]
    total, done = Sums(), machine.counter("running the merged model", len(calls))
    with observation.watched():
        for sums in local.run(local.single(calls), machine, done=done):
            total.join(sums)
    return total


def measure_forward(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: Mapping[int, Sequence[Inputs]],
    listen: Listen,
    names: Sequence[str],
    machine: Machine,
    correct: Callable[[Layer, Sums], None],
) -> Sums:
    """Measure layer after layer; `correct` changes each before the model's runs go on past it.

    All runs come to a layer together, one computing at a time. A layer that is called several times
    is measured at the first, and weights that layers share with the first of them. The model's
    weights are changed.
    """
    observation = Observation(model, layers)
    runs = [(expert, call) for expert, many in inputs.items() for call in many]
    total, done = Sums(), machine.counter("calibrating in forward order", len(layers))

    def settle(layer: Layer, arrivals: Arrivals) -> None:
        name = layer.name
        total.called.add(name)
        left = {p: t for p, t in layer.tensors.items() if t not in total.settled}
        if left:
            total.settled.update(dict.fromkeys(left.values(), name))
            here = copy.copy(layer)
            here.tensors = left
            for place, call in arrivals:
                listen(total, runs[place][0], here, call)
            correct(here, total)
        if done is not None:
            done(layer)

    def run(expert: int, call: Inputs, listener: Listener) -> object:
        return observation.run(call, listener, names[expert])

    with observation.watched():
        order, seen = trace(observation, runs, names)
        in_lockstep([partial(run, *call) for call in runs], order, settle)
    experts = set(inputs)
    total.late = {name for name, by in seen.items() if total.measured_by(name) < by & experts}
    return total


def trace(
    observation: Observation, runs: Sequence[tuple[int, Inputs]], names: Sequence[str]
) -> tuple[list[str], dict[str, set[int]]]:
    """The layers in the order in which runs first come to them, and whose runs do."""
    order: list[str] = []
    seen: dict[str, set[int]] = defaultdict(set)
    for expert, call in runs:
        last: list[str] = []

        def listen(layer: Layer, _: Call, last: list[str] = last, by: int = expert) -> None:
            name = layer.name
            if name not in order:
                order.insert(order.index(last[-1]) + 1 if last else 0, name)
            last.append(name)
            seen[name].add(by)

        observation.run(call, listen, names[expert])
    return order, seen


FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What a module may raise when it is called with other parameters than its own."""


def note_inputs(gather: Gather, sums: Sums, expert: int, layer: Layer, call: Call) -> None:
    """Take note of what is gathered from a linear layer's inputs; others stay as they are."""
    sums.called.add(layer.name)
    if not isinstance(layer, TokenLayer) or isinstance(layer.module, nn.Embedding):
        kind = type(layer.module).__name__
        sums.failed[layer.name] = f"a {kind} is no linear layer, which alone is solved for"
        return
    inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
    sums.add_inputs(layer.name, expert, gather(tokens_of(inputs.float(), call.masks)))


def note_gains(
    merge: LiveMerge,
    measure: Measure,
    sums: Sums,
    expert: int,
    layer: Layer,
    call: Call,
) -> None:
    """Take note of the gains of a layer's outputs."""
    sums.called.add(layer.name)
    if layer.name in sums.failed:
        return
    device = next(layer.module.parameters()).device

    def origin(parameter: str) -> Tensor:
        return merge.base(layer.tensors[parameter]).to(device)

    own = {p: merge.expert(expert, t).to(device) for p, t in layer.tensors.items()}
    merged = {p: merge.merged(t).to(device) for p, t in layer.tensors.items()}
    try:
        both = layer.changes(call, own, origin), layer.changes(call, merged, origin)
        for (part, mine), (_, joint) in zip(*both, strict=True):
            sums.add(layer.name, part, expert, measure(mine, joint))
    except NotLinearError as error:
        sums.failed[layer.name] = error.problem
    except FAILURES as error:
        # If it is the samples that are wrong, the model itself says so right after.
        text = (str(error).splitlines() or [""])[0]
        sums.failed[layer.name] = f"a {type(layer.module).__name__} cannot be followed: {text}"


def conclude(
    layers: Sequence[Layer], uncovered: Sequence[Uncovered], sums: Sums, experts: int
) -> GainEstimate:
    """The gains of every tensor; a tensor that several layers share has one for all of them.

    A layer where the merge or the experts change nothing has none, and needs none.
    """
    holders: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        name = layer.name
        for tensor in layer.tensors.values():
            if name not in sums.failed and name == sums.settled.get(tensor, name):
                holders[tensor].append(layer)
    gains = {tensor: gains_of(tensor, own, sums, experts) for tensor, own in holders.items()}
    seen = {name: value for name, value in gains.items() if not bool(value.isnan().all())}
    finite = {name for name, value in gains.items() if bool(value.isfinite().any())}
    blind = [Uncovered(name, reason) for name, reason in sums.failed.items()]
    blind += [
        Uncovered(layer.name, "no sample came to it")
        for layer in layers
        if layer.name not in sums.called and finite.isdisjoint(layer.tensors.values())
    ]
    blind += [
        Uncovered(name, "in forward order only some experts' samples came to it in time")
        for name in sorted(sums.late)
    ]
    return GainEstimate(seen, [*uncovered, *dict.fromkeys(blind)])


def gains_of(tensor: str, layers: Sequence[Layer], sums: Sums, experts: int) -> Tensor:
    """A tensor's gains from the layers that hold it: [K], or [K, rows] where rows have parts."""
    names = [layer.name for layer in layers]
    rows = layers[0].rows(next(p for p, t in layers[0].tensors.items() if t == tensor))
    parts = [rows] if isinstance(rows, int) else sorted(set(rows.tolist()))
    table = torch.tensor(
        [[sums.mean(names, part, expert) for part in parts] for expert in range(experts)],
        dtype=torch.float64,
    )
    if isinstance(rows, int):
        return table[:, 0]
    return table[:, torch.searchsorted(torch.tensor(parts), rows)]
