"""What task vectors alone tell of a merge: the share of directions that they use, how alike they
are, and how far the experts moved.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from jaxtyping import Float

from magmerge.core.choice import Evidence
from magmerge.core.lazy import Tensor, torch
from magmerge.core.types import Kind, Step
from magmerge.engine.executors import local
from magmerge.engine.job import Job, Models

WEIGHTS: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution", "experts"})
ROWS, RUNS = 256, 8
"""How many rows of a matrix are looked at, at most, and in how many runs over all of it."""
ENTRIES = 1 << 22
"""Of all experts together, at most, where that leaves FEWEST rows."""
BYTES = 20
"""For each entry of base and experts: in float64, and one model's part as it is read."""
FEWEST = 64
NARROW = 16
"""Rows or columns below which a matrix has too few directions to tell anything."""
HELD = 0.99
"""Share of the square that the directions which are counted hold."""


class LayerEvidence(NamedTuple):
    """The same of one matrix; `cosine` None with one expert."""

    directions: float
    cosine: float | None
    distance: float


def evidence_of(job: Job, steps: Iterable[Step], room: int) -> Evidence:
    """What all matrices tell that are merged and that all experts changed.

    Of each at most ROWS rows are read, at places that its shape tells, so that the result does not
    depend on the machine; in `room` bytes, of all threads. Without any such matrix all is 0.
    """
    models = job.models
    tasks = [
        _task(models, step)
        for step in steps
        if step.action == "merge" and step.kind in WEIGHTS and step.voters is None
    ]
    found = [one for one in local.run(tasks, job.machine, room=room) if one is not None]
    if not found:
        return Evidence(len(models.experts), 0.0, 0.0, 0.0, 0)
    cosines = [one.cosine for one in found if one.cosine is not None]
    return Evidence(
        len(models.experts),
        statistics.fmean(one.directions for one in found),
        statistics.fmean(cosines) if cosines else 1.0,
        statistics.median(one.distance for one in found),
        len(found),
    )


def _task(models: Models, step: Step) -> local.Task[LayerEvidence | None]:
    """A matrix's evidence as one job; None for one that is too narrow, not finite, or that some
    expert did not change.
    """
    shape, base = step.spec.shape, models.base
    columns = shape[-1] if step.kind == "experts" else math.prod(shape[1:])
    rows = math.prod(shape) // columns if columns else 0
    if min(rows, columns) < NARROW or base is None or step.spec.name not in base.specs:
        return None
    runs = row_runs(rows, columns * len(models.experts))
    entries = sum(last - first for first, last in runs) * columns * (1 + len(models.experts))
    (found,) = yield [local.Job(BYTES * entries, partial(_of_step, models, step, columns, runs))]
    return found  # type: ignore[no-any-return]


def _of_step(
    models: Models, step: Step, columns: int, runs: list[tuple[int, int]]
) -> LayerEvidence | None:
    assert models.base is not None
    count, name, done = sum(last - first for first, last in runs), step.spec.name, 0
    every = torch.empty(1 + len(models.experts), count, columns, dtype=torch.float64)
    for first, last in runs:
        own = every[:, done : done + last - first]
        start, stop = first * columns, last * columns
        origin = models.base.read_part(name, start, stop).to(torch.float32)
        own[0] = origin.reshape(-1, columns)
        for row, expert in zip(own[1:], models.experts, strict=True):
            row.copy_(expert.delta(name, origin, start).reshape(-1, columns))
        done += last - first
    return of_rows(every)


def row_runs(rows: int, width: int) -> list[tuple[int, int]]:
    """Runs of rows over a matrix with `width` entries a row, from the first to the last."""
    count = min(rows, ROWS, max(FEWEST, ENTRIES // width))
    if count == rows:
        return [(0, rows)]
    size = count // RUNS
    firsts = (number * (rows - size) // (RUNS - 1) for number in range(RUNS))
    return [(first, first + size) for first in firsts]


def of_rows(rows: Float[Tensor, "K+1 m n"]) -> LayerEvidence | None:
    """What some rows tell: those of the base, then of each expert's task vector, in float64."""
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    if not bool(norms.isfinite().all()) or not bool((norms > 0).all()):
        return None
    shares = []
    for delta, norm in zip(rows[1:], norms[1:], strict=True):
        unit = (delta if delta.shape[0] <= delta.shape[1] else delta.T) / norm
        squares = torch.linalg.eigvalsh(unit @ unit.T).flip(0).clamp(min=0).cumsum(0)
        least = int((squares < HELD * squares[-1]).sum()) + 1
        shares.append(least / len(squares))
    count, flat = len(rows) - 1, rows[1:].flatten(1)
    cosines = flat @ flat.T / (norms[1:, None] * norms[1:])
    cosine = None
    if count > 1:
        cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    return LayerEvidence(statistics.fmean(shares), cosine, float(norms[1:].mean() / norms[0]))
