"""A model's layers in the order in which runs come to them, each changed before any goes past it.

Beside the merged model the experts may run on the same inputs, layer by layer with it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from torch import nn

from magmerge.core.machine import Machine
from magmerge.data.rows import Inputs
from magmerge.live.calls import Listener, Observation
from magmerge.live.gains import Run, Sums
from magmerge.live.layers import Call, Layer
from magmerge.live.lockstep import Arrivals, in_lockstep

Calls = Mapping[int, Sequence[tuple[Call, ...]]]
"""The calls of a layer by each expert's samples, one of each model that runs on them."""
Visit = Callable[[Sums, Layer, Calls], None]
"""Takes note of a layer's calls, while all that the merge changed in it is at hand."""


class Following(NamedTuple):
    """A model, and the layers of it that are followed."""

    model: nn.Module
    layers: Sequence[Layer]


class Side(NamedTuple):
    """Who runs on an expert's samples beside others: one model for all, or a copy for each."""

    models: Mapping[int, Following]


def measure_forward(
    merge: Following,
    sides: Sequence[Side],
    inputs: Mapping[int, Sequence[Inputs]],
    visit: Visit,
    names: Sequence[str],
    machine: Machine,
    correct: Callable[[Layer, Sums], None],
) -> Sums:
    """Measure layer after layer; `correct` changes each before the model's runs go on past it.

    All runs come to a layer together. A layer that is called several times is measured at the
    first, and weights that layers share with the first of them. The model's weights are changed.
    On each of the inputs all `sides` run, the merged model or the experts' copies; calls that not
    all of them make are left out.
    """
    models = [merge, *(model for side in sides for model in side.models.values())]
    observations = {id(model.model): Observation(*model) for model in models}
    own, past = {layer.name: layer for layer in merge.layers}, set[str]()
    samples = [(expert, call) for expert, many in inputs.items() for call in many]
    total, done = Sums(), machine.counter("calibrating in forward order", len(merge.layers))

    def settle(layer: Layer, arrivals: Arrivals) -> None:
        name = layer.name
        past.add(name)
        total.called.add(name)
        left = {p: t for p, t in layer.tensors.items() if t not in total.settled}
        if left:
            total.settled.update(dict.fromkeys(left.values(), name))
            here = copy.copy(layer)
            here.tensors = left
            visit(total, here, _side_by_side(samples, len(sides), arrivals))
            correct(here, total)
        if done is not None:
            done(layer)

    def run(expert: int, call: Inputs, side: Side, listener: Listener) -> object:
        def first_calls(layer: Layer, call: Call) -> None:
            if layer.name not in past:
                listener(own[layer.name], call)

        observation = observations[id(side.models[expert].model)]
        return observation.run(call, first_calls, names[expert])

    with ExitStack() as stack:
        for observation in observations.values():
            stack.enter_context(observation.watched())
        order, seen = trace(observations[id(merge.model)], samples, names)
        runs = [partial(run, *sample, side) for sample in samples for side in sides]
        in_lockstep(runs, order, settle, machine)
    experts = set(inputs)
    late = {name for name, by in seen.items() if total.measured_by(name) < by & experts}
    total.late = late - total.failed.keys()
    return total


def _side_by_side(samples: Sequence[Run], sides: int, arrivals: Arrivals) -> Calls:
    """The calls on each expert's samples that all sides make."""
    by_sample: dict[int, list[Call]] = defaultdict(list)
    for place, call in arrivals:
        by_sample[place // sides].append(call)
    calls: dict[int, list[tuple[Call, ...]]] = defaultdict(list)
    for place, own in by_sample.items():
        if len(own) == sides:
            calls[samples[place][0]].append(tuple(own))
    return calls


def trace(
    observation: Observation, runs: Sequence[Run], names: Sequence[str]
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
