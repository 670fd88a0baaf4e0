"""What is noted of a layer when runs come to it: gains in its output, or sums over its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from magmerge.core.machine import Machine
from magmerge.engine.executors import local
from magmerge.live.forward import Calls as CallsBeside
from magmerge.live.gains import Calls, Sums
from magmerge.live.layers import Call, Layer, NotLinearError
from magmerge.live.live_merge import LiveMerge
from magmerge.live.rows_of_inputs import fed_rows, not_solved_for

Measure = Callable[[Tensor, Tensor], Tensor]
"""From the expert's change and the merge's, [tokens, features], to a gain for each token."""
Gather = Callable[..., Tensor]
"""From a layer's inputs, [tokens, features] of each model that runs, to what is summed up over all
tokens."""
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What a module may raise when it is called with other parameters than its own."""


def note_inputs(gather: Gather, sums: Sums, layer: Layer, calls: CallsBeside) -> None:
    """Take note of what is gathered from a linear layer's inputs; others stay as they are."""
    sums.called.add(layer.name)
    reason = not_solved_for(layer)
    if reason is not None:
        sums.failed[layer.name] = reason
        return
    for expert, own in calls.items():
        for together in own:
            fed = [fed_rows(layer, call) for call in together]
            if len({len(rows) for rows in fed}) > 1:
                sums.failed[layer.name] = "the expert and the merged model feed it other tokens"
                return
            sums.add_inputs(layer.name, expert, gather(*fed))


def note_gains(
    merge: LiveMerge, measure: Measure, machine: Machine, sums: Sums, layer: Layer, calls: Calls
) -> None:
    """Take note of the gains of a layer's outputs.

    The base is read once, and each expert once for all calls by its samples; in memory are as many
    experts' task vectors as the machine has threads.
    """
    sums.called.add(layer.name)
    if layer.name in sums.failed:
        return
    base = {p: merge.base(tensor) for p, tensor in layer.tensors.items()}
    device = next(layer.module.parameters()).device
    merged = {p: merge.merged(t, base[p]).to(device) for p, t in layer.tensors.items()}

    def origin(parameter: str) -> Tensor:
        return base[parameter].to(device)

    def by_samples(expert: int, own_calls: Sequence[Call]) -> Sums:
        own = {p: merge.expert(expert, t, base[p]).to(device) for p, t in layer.tensors.items()}
        part = Sums()
        try:
            with torch.no_grad():
                for call in own_calls:
                    for place, both in layer.changes(call, (own, merged), origin):
                        part.add(layer.name, place, expert, measure(*both))
        except NotLinearError as error:
            part.failed[layer.name] = error.problem
        except FAILURES as error:
            # If it is the samples that are wrong, the model itself says so right after.
            text = (str(error).splitlines() or [""])[0]
            kind = type(layer.module).__name__
            part.failed[layer.name] = f"a {kind} cannot be followed: {text}"
        return part

    jobs = [partial(by_samples, *each) for each in calls.items()]
    for part in local.run(local.single(jobs), machine):
        sums.join(part)
