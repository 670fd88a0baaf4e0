"""Full task vectors of a module of adapters, and their merge: tile by tile, one call a tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core import journal
from magmerge.core.parameters import UNIT
from magmerge.core.types import Piece, Step
from magmerge.engine.executors.local import Task, in_place
from magmerge.engine.job import Job
from magmerge.engine.kernel_steps import kernel_of
from magmerge.engine.layer import merge_layer
from magmerge.engine.memory import cut_for
from magmerge.engine.reader import Reader
from magmerge.engine.step_method import Keywords, method_for, of_piece
from magmerge.engine.steps import Bench, jobs, surveyed
from magmerge.engine.stored_pieces import Span, StoredPieces
from magmerge.kernels.arguments import DELTA, Inputs

Whole = tuple[Float[Tensor, "out in"], tuple[str, ...]]
"""A module's merge, and the notes on it."""


class ProductPieces(StoredPieces):
    """Gives kernels pieces of one module's task vectors [K, entries], in float32 on the CPU."""

    def __init__(self, job: Job, deltas: Float[Tensor, "K entries"]) -> None:
        super().__init__(job.models)
        self._deltas = deltas

    def has(self, step: Step) -> bool:  # noqa: ARG002 - there is one
        return self._deltas.is_cpu and self._deltas.dtype == torch.float32

    def inputs(
        self,
        step: Step,  # noqa: ARG002 - there is one
        spans: Sequence[Span],
        *,
        based: bool = True,  # noqa: ARG002 - the base is zero
    ) -> Inputs:
        arrays = self._deltas.numpy()
        experts = [
            np.concatenate([row[start:stop] for start, stop in spans])
            if len(spans) > 1
            else row[slice(*spans[0])]
            for row in arrays
        ]
        formats = [DELTA] * len(experts)
        return Inputs(len(experts[0]), spans[0][0], experts, formats, None, DELTA)


class ProductReader(Reader):
    """Reads pieces of one module out of its task vectors [K, entries], which are multiplied out."""

    def __init__(self, job: Job, deltas: Float[Tensor, "K entries"]) -> None:
        super().__init__(job)
        self._deltas, self.stored = deltas, ProductPieces(job, deltas)

    def experts(
        self,
        step: Step,  # noqa: ARG002 - there is one
        piece: Piece,
        base: Tensor,
        what: Literal["deltas", "weights"],  # noqa: ARG002 - the base is zero
        *,
        seen: bool = False,  # noqa: ARG002 - all of it is
    ) -> Tensor:
        """[K, *piece]: the task vectors."""
        part = self._deltas[:, piece.start : piece.stop]
        return part.reshape(len(part), *base.shape)


def merged_from_products(bench: Bench, step: Step) -> Whole:
    """The merge of a module whose task vectors are multiplied out once, for survey and merge."""
    entries, device = math.prod(step.spec.shape), bench.work.job.device
    zeros = device.empty(torch.float32, (1,)).zero_().expand(entries)
    whole = Piece(0, entries, (entries,), UNIT)
    reader = ProductReader(bench.work.job, bench.reader.experts(step, whole, zeros, "deltas"))
    return in_place(merged_by_pieces(replace(bench, reader=reader), step))


def merged_by_pieces(bench: Bench, step: Step) -> Task[Whole]:
    """The merge of a module, each sweep of it with what the bench's reader gives."""
    work = bench.work
    survey = yield from surveyed(bench, step)
    merged = torch.empty(math.prod(step.spec.shape))

    def merge(piece: Piece) -> list[str]:
        with journal.listening() as notes:
            tile = merged_tile(bench, step, survey, piece)
        merged[piece.start : piece.stop] = tile.reshape(-1)
        return list(notes)

    parts = yield jobs(bench, step, cut_for(step, work.stages, work.plan.piece), merge)
    notes = [note for part in parts for own in part for note in own]
    return merged.reshape(step.spec.shape).flatten(1), tuple(dict.fromkeys(notes))


def merged_tile(bench: Bench, step: Step, survey: Keywords | None, piece: Piece) -> Tensor:
    """A tile of the merge, from those of the task vectors; NonFiniteError where it is too large. It
    is this thread's until it merges another one.
    """
    work, exact = bench.work, replace(step, spec=replace(step.spec, dtype="F32"), calibrated=False)
    kernel = kernel_of(work, bench.reader.stored, exact, survey)
    stored = None if kernel is None else kernel.run(piece)
    if stored is not None:
        return torch.from_numpy(stored.data.view(np.float32))
    base = bench.reader.base(step, piece)
    method, bound = method_for(work, step, survey)
    bound = of_piece(method, bound, step.first + piece.start, base)
    deltas = bench.reader.experts(step, piece, base, method.acts_on, seen=survey is not None)
    merged = merge_layer(step, method, bound, base, deltas).delta
    return bench.cast(exact, merged)
