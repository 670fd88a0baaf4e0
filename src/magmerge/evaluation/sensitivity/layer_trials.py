"""Sensitivity by trying: each layer's task vector times a factor, and the score again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.evaluation.sensitivity.criteria import Criterion, LabelledBatch
from magmerge.live.calls import run
from magmerge.live.coverage import Followed
from magmerge.live.units import RunMemory, remembering, resuming

MergedDelta = Callable[[str], Tensor]
"""The merge's task vector of a tensor, by its name."""


def run_all(
    model: nn.Module, batches: Sequence[LabelledBatch]
) -> tuple[list[Any], list[RunMemory]]:
    """Every batch's output, and what the model's blocks put out on the way."""
    outputs, memories = [], []
    for batch in batches:
        memory = RunMemory()
        with remembering(model, memory), torch.no_grad():
            outputs.append(call(model, batch))
        memories.append(memory)
    return outputs, memories


def call(model: nn.Module, batch: LabelledBatch) -> Any:
    """The model's output."""
    return run(model, batch.inputs, "the generic data set")


def by_trial(
    model: nn.Module,
    layers: Sequence[Followed],
    batches: Sequence[LabelledBatch],
    score: Criterion,
    deltas: MergedDelta,
    *,
    factor: float,
    done: Callable[[object], None] | None = None,
) -> dict[str, float]:
    """By how much the score rises when a layer's task vector alone is multiplied by `factor`.

    arXiv:2512.19320, the sensitive layers, with a factor of 1.1. Blocks before the changed one are
    not run again: they put out what they did.
    """
    outputs, memories = run_all(model, batches)
    before = _overall(score, outputs, batches)
    harms = {}
    for followed in layers:
        with _enlarged(followed, deltas, factor), torch.no_grad():
            changed = []
            for batch, memory in zip(batches, memories, strict=True):
                with resuming(model, memory, memory.first(followed.layer.name)):
                    changed.append(call(model, batch))
        harms[followed.layer.name] = _overall(score, changed, batches) - before
        if done is not None:
            done(followed)
    return harms


def _overall(score: Criterion, outputs: Sequence[Any], batches: Sequence[LabelledBatch]) -> float:
    rows = [
        score.rows(output, batch, number)
        for number, (output, batch) in enumerate(zip(outputs, batches, strict=True))
    ]
    return score.overall(torch.cat(rows))


@contextmanager
def _enlarged(followed: Followed, deltas: MergedDelta, factor: float) -> Iterator[None]:
    """Within it the layer has `factor` times its task vector; afterwards the very same weights."""
    own: Mapping[str, nn.Parameter] = {
        local: followed.layer.module.get_parameter(local) for local in followed.tensors
    }
    kept = {local: parameter.detach().clone() for local, parameter in own.items()}
    with torch.no_grad():
        for local, tensor in followed.tensors.items():
            own[local].add_(deltas(tensor).to(own[local]), alpha=factor - 1)
    try:
        yield
    finally:
        with torch.no_grad():
            for local, parameter in own.items():
                parameter.copy_(kept[local])
