"""How much memory merging a module of adapters takes, and whether its full task vectors fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from magmerge.core.types import Piece, Step
from magmerge.engine.job import Job
from magmerge.engine.memory import OVERHEAD, Need, bytes_of, cut_for, needs_of
from magmerge.engine.stages import Stages
from magmerge.linalg.best_rank import scratch

FACTORED = 8
"""Tensors of the size of one task vector's coordinates that a module in factors takes besides."""


def bytes_of_products(step: Step, stages: Stages, experts: int, pieces: Sequence[Piece]) -> int:
    """What the task vectors of one module take, with their merge and what that takes."""
    entries = math.prod(step.spec.shape)
    return 4 * (experts + 1) * entries + bytes_of(step, stages, experts, pieces)


def has_room(job: Job, size: int) -> bool:
    """Whether every thread may have so much."""
    return size * job.machine.count <= job.machine.limit - OVERHEAD


def needs_of_module(job: Job, step: Step, piece: int) -> list[Need]:
    """What the jobs that merge one module of adapters take at most."""
    size, products = sizes_of_module(job, step, piece)
    needs = [(step.spec.name, max(size, products))]
    return needs if products or job.stages.in_factors(step) else needs + needs_of(job, step, piece)


def sizes_of_module(job: Job, step: Step, piece: int) -> tuple[int, int]:
    """Bytes for a merge in factors, or for cutting one to a rank; and for making that of the full
    task vectors at once, 0 where it is made by pieces: of factors, or for lack of memory.
    """
    stages, union = job.stages, job.models.union
    assert union is not None
    assert stages.truncation is not None
    ranks = union.ranks(step.spec.name)
    factored = stages.in_factors(step)
    shape = step.spec.shape[0], math.prod(step.spec.shape[1:])
    width = min(shape[1], sum(ranks) + (0 if factored else max(ranks)))
    size = 4 * width * (shape[0] * (len(ranks) + FACTORED) + 3 * shape[1])
    if factored:
        return size, 0
    size += 4 * math.prod(shape) + scratch(shape, stages.truncation.most(step.spec.shape, ranks))
    pieces, experts = cut_for(step, stages, piece), len(job.models.experts)
    products = bytes_of_products(step, stages, experts, pieces)
    return size, products if has_room(job, max(size, products)) else 0
