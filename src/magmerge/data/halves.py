"""Samples in two halves: rows to estimate from, and rows kept aside to check on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magmerge.data.rows import Inputs


class Halves(NamedTuple):
    """Each source's inputs to estimate from, and those kept aside; the names of the sources whose
    only row is in both.
    """

    estimate: Mapping[str, Sequence[Inputs]]
    aside: Mapping[str, Sequence[Inputs]]
    shared: tuple[str, ...]


def halves(inputs: Mapping[str, Sequence[Inputs]]) -> Halves:
    """Every second row of each source is kept aside, from the second on; of an odd number one less.

    Turn by turn, so that a source that is sorted is halved fairly. A source of one row has it in
    both halves: a factor for each layer is too little to fit the output on a row by heart.
    """
    estimate, aside = {}, {}
    shared = [name for name, calls in inputs.items() if sum(call.rows for call in calls) < 2]
    for name, calls in inputs.items():
        if name in shared:
            estimate[name] = aside[name] = list(calls)
            continue
        estimate[name], aside[name], first = [], [], 0
        for call in calls:
            rows = torch.arange(first, first + call.rows) % 2
            for half, number in ((estimate[name], 0), (aside[name], 1)):
                own = (rows == number).nonzero().flatten()
                if len(own):
                    half.append(rows_of(call, own))
            first += call.rows
    return Halves(estimate, aside, tuple(shared))


def rows_of(call: Inputs, rows: Tensor) -> Inputs:
    """A call with only these rows: of all tensors that have a row for each sample, at any depth."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.ndim and len(value) == call.rows else value
        if isinstance(value, Mapping):
            return {name: part(inner) for name, inner in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(part, value))
        return type(value)(map(part, value)) if isinstance(value, list | tuple) else value

    if len(rows) == call.rows:
        return call
    kwargs = {name: part(value) for name, value in call.kwargs.items()}
    return Inputs(tuple(map(part, call.args)), kwargs, len(rows))
