"""By how much a merged model's layers fall short of the experts' on what they are fed."""

from __future__ import annotations

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
from magmerge.linalg.finite import is_finite
from magmerge.live.calls import Listener, Observation
from magmerge.live.layers import Call, Layer
from magmerge.live.lockstep import Arrivals, in_lockstep
from magmerge.live.own_state import OwnState

UNKNOWN = 1 << 62
"""Bytes that fit nowhere."""
HELD = 4
"""How many tensors like those that a layer is fed a waiting run holds, about."""


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
        """Add what was gathered from one run's inputs; the layer counts as measured, or as failed
        where that is not finite.
        """
        known = self._inputs.get((layer, expert))
        total = part if known is None else known + part
        if not is_finite(total):
            self.failed[layer] = "samples feed it NaN or infinity"
        self._inputs[layer, expert] = total
        self._gains[layer, 0, expert].append((1.0, 1))

    def take_inputs(self, layer: str, experts: int) -> Tensor | None:
        """The sums [K, ...] over a layer's inputs, which are forgotten: they are large. None where
        no sample came to it, and where it failed.
        """
        held = {
            k: self._inputs.pop((layer, k)) for k in range(experts) if (layer, k) in self._inputs
        }
        if not held or layer in self.failed:
            return None
        first = next(iter(held.values()))
        sums = torch.zeros(experts, *first.shape, dtype=first.dtype)
        for k in list(held):
            # Each is let go when it is copied, so that they are never there twice.
            sums[k] = held.pop(k)
        return sums

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


Calls = Mapping[int, Sequence[Call]]
"""The calls of a layer by each expert's samples."""
Visit = Callable[[Sums, Layer, Calls], None]
"""Takes note of a layer's calls, while all that the merge changed in it is at hand."""
Run = tuple[int, Inputs]
"""An expert's place, and some of its inputs."""


def measure_once(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: Mapping[int, Sequence[Inputs]],
    visit: Visit,
    names: Sequence[str],
    machine: Machine,
    room: int,
) -> Sums:
    """Run the model once on each expert's inputs and measure every layer as it is.

    Runs come to each layer together, so that it is visited once: one of each expert, and as many
    more as what they hold fits into `room` bytes. Where modules keep something from one call to the
    next, one run comes after the other.
    """
    observation, total = Observation(model, layers), Sums()
    left = _in_turn(inputs)
    fed = _most_fed(layers, left)
    state = OwnState(model)
    with observation.watched():
        while left:
            size = 1 if state.kept else max(len(inputs), room // (HELD * fed))
            group, sums = left[:size], Sums()
            fed = _measure_group(observation, layers, group, visit, sums, names, machine)
            if size > 1 and state.check():
                continue
            total.join(sums)
            left = left[size:]
    return total


def _most_fed(layers: Sequence[Layer], runs: Sequence[Run]) -> int:
    """More bytes than any layer is fed in a run, before that is known: all that the model is given,
    at each place as many as the widest layer has features.
    """
    widest = max(
        (max(p.shape, default=1) for layer in layers for p in layer.module.parameters()), default=1
    )
    most = max((Call(call.args, call.kwargs, ()).size for _, call in runs), default=0)
    return most * widest or UNKNOWN


def _in_turn(inputs: Mapping[int, Sequence[Inputs]]) -> list[Run]:
    """All runs: the first of each expert, then the second of each."""
    most = max(map(len, inputs.values()), default=0)
    return [
        (expert, many[place])
        for place in range(most)
        for expert, many in inputs.items()
        if place < len(many)
    ]


def _measure_group(
    observation: Observation,
    layers: Sequence[Layer],
    group: Sequence[Run],
    visit: Visit,
    total: Sums,
    names: Sequence[str],
    machine: Machine,
) -> int:
    """Runs in lockstep, all layers measured; the bytes that a run fed to the largest of them."""
    done = machine.counter("running the merged model", len(layers))
    largest, seen = 1, set[str]()

    def run(expert: int, call: Inputs, listener: Listener) -> object:
        return observation.run(call, listener, names[expert])

    def settle(layer: Layer, arrivals: Arrivals) -> None:
        nonlocal largest
        visit(total, layer, by_expert(group, arrivals))
        largest = max(largest, *(call.size for _, call in arrivals))
        if done is not None and layer.name not in seen:
            done(layer)
        seen.add(layer.name)

    runs = [partial(run, *each) for each in group]
    in_lockstep(runs, [layer.name for layer in layers], settle, machine)
    return largest


def by_expert(runs: Sequence[Run], arrivals: Arrivals) -> Calls:
    """The calls of runs that came to a layer, by the expert whose samples they are."""
    calls: dict[int, list[Call]] = defaultdict(list)
    for place, call in arrivals:
        calls[runs[place][0]].append(call)
    return calls


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
