"""How much memory a run needs, and how it is kept within a limit: known from the plan's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core import dtypes
from magmerge.core.errors import ParameterError
from magmerge.core.machine import Machine
from magmerge.core.parameters import UNIT
from magmerge.core.pieces import PIECE, cut, stretches
from magmerge.core.recipe import Samples
from magmerge.core.traits import Calibrator, Method
from magmerge.core.types import Cut, Piece, Step
from magmerge.engine.job import Job
from magmerge.engine.stages import Stages, Treatment

FIXED_COPIES = 4
"""Tensors of a piece's size beside the experts': base, what is read, result, its cast."""
KEPT = 4 * PIECE
"""Bytes of a stored piece, at most, whose memory a thread keeps for the next one."""
OVERHEAD = 120_000_000
"""Bytes for all that does not grow with the pieces: code loaded late, samples, candidates (at most
some 50 million bytes each), records.
"""
BESIDE_A_LAYER = (3, 2)
"""Float32 tensors of a layer's size while it is measured: base, the merge's task vector and what it
is taken of; and for each thread an expert's task vector and what that is taken of."""
TALLIED = 32
"""Bytes for each entry of a small layer that a survey keeps for each expert, at most."""
EQUATIONS = 4 * 8
"""Bytes for each entry of an expert's sums while a layer is solved from them: float64 matrices of
the equations, an expert's share, the Cholesky factor and the solver's copy of it."""


Need = tuple[str, int]
"""A layer's name, and the bytes that one of its jobs takes."""


class Allowance(NamedTuple):
    """What a run may use: the stated peak, the part that jobs share, and the size of a piece."""

    memory: int
    room: int
    piece: int


def cut_of(item: Method | Calibrator, keywords: Mapping[str, Any]) -> Cut:
    """How a layer may be cut for this method or calibrator with these keywords."""
    return item.cut(**keywords) if callable(item.cut) else item.cut


def coarsest(*cuts: Cut) -> Cut:
    """The cut that suits all: a whole layer suits everything, and rows whatever takes entries."""
    return max(cuts, key=("entries", "rows", "whole").index, default="entries")


def cut_for(step: Step, stages: Stages, limit: int) -> tuple[Piece, ...]:
    """The pieces of a layer that its merge and all its calibrators can take."""
    cuts, kind = [cut_of(*item) for item in stages.treatment.of(step)], step.kind
    if stages.method is not None and step.action == "merge":
        cuts.append(cut_of(stages.method, stages.keywords_at(step)))
        if stages.method.kinds is None and kind == "experts":
            # To what is not for matrices, fused experts are one tensor like any other.
            kind = "other"
    return cut(step.spec.shape, kind, coarsest(*cuts), limit)


def takes_in_turn(step: Step, stages: Stages, piece: Piece) -> bool:
    """Whether the method reads this piece's experts one after the other."""
    method = stages.method
    if method is None or step.action != "merge":
        return False
    return method.in_turn and len(piece.shape) > 1


def parts_of(step: Step, treatment: Treatment, piece: Piece) -> list[Piece]:
    """Those of a piece that is merged as a whole, as its calibrators can take them."""
    cuts, kind = [cut_of(*item) for item in treatment.of(step)], step.kind
    parts = cut(piece.shape, "other" if kind == "experts" else kind, coarsest(*cuts))
    first = piece.start
    return [part._replace(start=first + part.start, stop=first + part.stop) for part in parts]


def bytes_of(step: Step, stages: Stages, experts: int, pieces: Sequence[Piece]) -> int:
    """Bytes of a job that treats these pieces one after the other, and of what is found before."""
    entries, merging = max((piece.stop - piece.start for piece in pieces), default=0), 0
    if step.action == "carry":
        return 2 * entries * dtypes.width(step.spec.dtype)
    if pieces and takes_in_turn(step, stages, pieces[0]):
        merging = _bytes_in_turn(step, stages, experts, pieces[0])
        part = parts_of(step, stages.treatment, pieces[0])[0]
        entries = part.stop - part.start
    spaces = [calibrator.workspace for calibrator, _ in stages.treatment.of(step)]
    # While they are read the experts are there in their stored format too.
    spaces.append((1, 0))
    # As stored, a piece of each model is kept for the next one.
    besides, method = (experts + 2) * min(4 * entries, KEPT), stages.method
    if method is not None and step.action == "merge":
        spaces.append(method.workspace)
        if method.scratch is not None and not merging:
            besides += max(method.scratch(piece.shape, experts) for piece in pieces)
        if method.survey is not None:
            besides += TALLIED * experts * min(math.prod(step.spec.shape), UNIT)
    besides += _calibrators_scratch(step, stages.treatment, experts, pieces)
    workspace = max(each * experts + fixed for each, fixed in spaces)
    if stages.treatment.sums is not None:
        items = [item for item, _ in stages.treatment.of(step)]
        besides += max((_bytes_of_solving(item, step, experts) for item in items), default=0)
    besides += merging
    return (8 if step.wide else 4) * (experts + FIXED_COPIES + workspace) * entries + besides


def _calibrators_scratch(
    step: Step, treatment: Treatment, experts: int, pieces: Sequence[Piece]
) -> int:
    """What the calibrator that takes most needs beside tensors of the layer's size."""
    shapes = [
        (*piece.shape[1::-1], *piece.shape[2:]) if step.kind == "transposed" else piece.shape
        for piece in pieces
    ]
    return max(
        (
            calibrator.scratch(shape, experts)
            for calibrator, _ in treatment.of(step)
            if calibrator.scratch is not None
            for shape in shapes
        ),
        default=0,
    )


def _bytes_in_turn(step: Step, stages: Stages, experts: int, piece: Piece) -> int:
    """Of a method that reads experts in turn: while it merges, or after that its result, the new
    weight and its cast.
    """
    assert stages.method is not None
    assert stages.method.scratch is not None
    wide = 2 if step.wide else 1
    merging = stages.method.scratch(piece.shape, experts)
    return wide * max(merging, 3 * 4 * (piece.stop - piece.start))


def bytes_of_result(job: Job, steps: Sequence[Step]) -> int:
    """Bytes of a merged adapter's factors at most; they stay in memory until they are written."""
    truncation, union = job.stages.truncation, job.models.union
    assert truncation is not None
    total = 0
    for step in steps:
        entries, shape = math.prod(step.spec.shape), step.spec.shape
        added = union is not None and step.spec.name in union.added
        if step.action == "average" or (added and step.action in ("merge", "mean")):
            total += dtypes.width(step.spec.dtype) * entries
        elif step.action in ("merge", "mean"):
            ranks = [] if union is None else union.ranks(step.spec.name)
            rank = truncation.most(shape, ranks)
            total += dtypes.width(step.spec.dtype) * rank * (shape[0] + math.prod(shape[1:]))
    return total


def bytes_of_sums(job: Job, steps: Sequence[Step]) -> int:
    """Bytes that a calibrator which solves for layers keeps at once beside the model that it runs:
    the sums over what one layer is fed, of each expert, and the equations while it is solved
    for; the experts' own blocks, where these run too; and all task vectors that it solved for.
    """
    items = [item for item, _ in job.stages.treatment.calibrators if item.entries is not None]
    if not items or job.recipe.samples is None:
        return 0
    count = len(job.models.experts)
    floats = [step for step in steps if step.spec.dtype in dtypes.FLOATS and step.twin is None]
    own = [step for step in floats if step.calibrated and step.kind in items[0].acts_on]
    each = [_bytes_of_solving(items[0], step, count) for step in own]
    solved = 4 * sum(math.prod(step.spec.shape) for step in own)
    beside = 4 * count * _largest_block(floats) if items[0].fed_by != "merge" else 0
    return max(each, default=0) + solved + beside


def _bytes_of_solving(item: Calibrator, step: Step, experts: int) -> int:
    """Bytes of a layer's sums, and of the equations that it is solved from."""
    if item.entries is None or len(step.spec.shape) < 2:
        return 0
    outputs, inputs = _matrix(step)
    return (4 * experts + EQUATIONS) * item.entries(inputs) + 3 * 8 * outputs * inputs


def _matrix(step: Step) -> tuple[int, int]:
    """The outputs and the inputs of a layer, as a matrix."""
    first, *rest = step.spec.shape
    return (rest[0], first) if step.kind == "transposed" else (first, math.prod(rest))


def bytes_at_work(steps: Sequence[Step], samples: Samples, machine: Machine) -> int:
    """Bytes of the model that a calibration runs, and of what is read beside one of its layers.

    What the model computes on its samples comes on top of that: a batch of each expert at once.
    """
    floats = [step for step in steps if step.spec.dtype in dtypes.FLOATS and step.twin is None]
    sizes = {step.spec.name: math.prod(step.spec.shape) for step in floats}
    largest = max((sizes[step.spec.name] for step in floats if step.calibrated), default=0)
    once, each_thread = BESIDE_A_LAYER
    beside = 4 * largest * (once + each_thread * machine.count)
    if samples.order == "forward" or samples.batchnorm:
        beside += 4 * largest * len(samples.data)
    each = 4 if samples.precision == "float32" else 8
    if not machine.offload:
        return each * sum(sizes.values()) + beside
    # Runs side by side leave a block together before they enter the next.
    return (4 + each) * _largest_block(floats) + beside


def _largest_block(steps: Sequence[Step]) -> int:
    """Entries of the block that has the most."""
    blocks: dict[str, int] = {}
    for step in steps:
        name = _block(step.spec.name)
        blocks[name] = blocks.get(name, 0) + math.prod(step.spec.shape)
    return max(blocks.values(), default=0)


def _block(name: str) -> str:
    """The block that a tensor belongs to, as its name tells: all up to the first number."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return name if place is None else ".".join(parts[: place + 1])


def allow(
    job: Job,
    steps: Sequence[Step],
    needs: Callable[[Job, Step, int], list[Need]],
    *,
    taken: int = 0,
) -> Allowance:
    """The pieces that let the threads' jobs at once stay within the limit, less the bytes `taken`.

    `needs` tells what each job of a step takes where its pieces have so many entries at most.
    ParameterError where the limit is too small for one job: a layer that must be merged as a whole.
    """
    limit, threads = job.machine.limit, job.machine.count
    room = limit - OVERHEAD - taken
    if room <= 0 and taken:
        held = "the adapter" if job.writes_adapter else "the model that is run"
        remedy = ", or run it block by block (--offload, offload=True)"
        remedy = "" if job.writes_adapter or job.recipe.moe is not None else remedy
        raise ParameterError(
            f"{_gigabytes(limit)} of memory are too little: {held} takes {_gigabytes(taken)}",
            remedy=f"allow more with --memory {_gigabytes(taken + 2 * OVERHEAD)} (memory=){remedy}",
        )
    piece = PIECE
    while True:
        every = [need for step in steps for need in needs(job, step, piece)]
        total = sum(sorted((size for _, size in every), reverse=True)[:threads])
        if total <= room or piece <= UNIT:
            break
        piece //= 2
    name, largest = max(every, key=lambda need: need[1], default=("", 0))
    if largest > room:
        raise ParameterError(
            f"{_gigabytes(limit)} of memory are too little: this layer takes {_gigabytes(largest)} "
            f"with {len(job.models.experts)} experts, beside {_gigabytes(OVERHEAD + taken)} for "
            "the program's own needs",
            tensor=name or None,
            remedy=f"allow more with --memory {_gigabytes(largest + OVERHEAD + taken)} (memory=)",
        )
    return Allowance(OVERHEAD + taken + min(total, room), room, piece)


def needs_of(job: Job, step: Step, piece: int) -> list[Need]:
    """The layer and the bytes of each of its jobs; as many as may run at once."""
    if step.action == "tie":
        return []
    pieces = cut_for(step, job.stages, piece)
    jobs = min(job.machine.count, len(stretches(pieces)))
    size = bytes_of(step, job.stages, len(job.models.experts), pieces)
    return [(step.spec.name, size)] * jobs


def _gigabytes(size: int) -> str:
    """Rounded up, so that what is asked for is enough."""
    return f"{-(-size // 10_000_000) / 100:.2f}GB"
