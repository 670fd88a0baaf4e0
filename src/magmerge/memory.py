"""How much memory a run needs, and how it is kept within a limit: known from the plan's steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from magmerge import dtypes
from magmerge.binding import Bound
from magmerge.errors import ParameterError
from magmerge.parameters import UNIT
from magmerge.pieces import PIECE, cut_for, stretches
from magmerge.recipe import Sampling
from magmerge.types import Piece, Step

FIXED_COPIES = 4
"""Tensors of a piece's size beside the experts': base, what is read, result, its cast."""
OVERHEAD = 120_000_000
"""Bytes for all that does not grow with the pieces: code loaded late, candidates, records."""
BESIDE_A_LAYER = 5
"""Float32 tensors of a layer's size while it is measured: base, two changes, what they are of."""
TALLIED = 32
"""Bytes for each entry of a small layer that a survey keeps for each expert, at most."""
DEFAULT = "2GB"


class Allowance(NamedTuple):
    """What a run may use: the stated peak, the part that jobs share, and the size of a piece."""

    memory: int
    room: int
    piece: int


def bytes_of(step: Step, bound: Bound, experts: int, pieces: Sequence[Piece]) -> int:
    """Bytes of a job that treats these pieces one after the other, and of what is found before."""
    entries = max((piece.stop - piece.start for piece in pieces), default=0)
    if step.action == "carry":
        return 2 * entries * dtypes.width(step.spec.dtype)
    spaces = [calibrator.workspace for calibrator, _ in bound.treatment.of(step)]
    # While they are read the experts are there in their stored format too.
    spaces.append((1, 0))
    besides, method = 0, bound.method
    if method is not None and step.action == "merge":
        spaces.append(method.workspace)
        if method.scratch is not None:
            besides += max(method.scratch(piece.shape, experts) for piece in pieces)
        if method.survey is not None:
            besides += TALLIED * experts * min(math.prod(step.spec.shape), UNIT)
    workspace = max(each * experts + fixed for each, fixed in spaces)
    return (8 if step.wide else 4) * (experts + FIXED_COPIES + workspace) * entries + besides


def bytes_at_work(steps: Sequence[Step], sampling: Sampling, threads: int) -> int:
    """Bytes of the model that a calibration runs, and of what is read beside one of its layers.

    What the model computes on its samples comes on top of that.
    """
    floats = [step for step in steps if step.spec.dtype in dtypes.FLOATS and step.twin is None]
    sizes = {step.spec.name: math.prod(step.spec.shape) for step in floats}
    largest = max((sizes[step.spec.name] for step in floats if step.calibrated), default=0)
    runs = 1 if sampling.order == "forward" else threads
    beside = 4 * BESIDE_A_LAYER * largest * runs
    if sampling.order == "forward" or sampling.batchnorm:
        beside += 4 * largest * len(sampling.data)
    each = 4 if sampling.precision == "float32" else 8
    if not sampling.offload:
        return each * sum(sizes.values()) + beside
    blocks: dict[str, int] = {}
    for name, size in sizes.items():
        blocks[block_of(name)] = blocks.get(block_of(name), 0) + size
    # Runs side by side are in different blocks, and in forward order some are a block ahead.
    here = sorted(blocks.values(), reverse=True)[
        : max(runs, 2 if sampling.order == "forward" else 1)
    ]
    return (4 + each) * sum(here) + beside


def block_of(name: str) -> str:
    """The block that a tensor belongs to, as its name tells: all up to the first number."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return name if place is None else ".".join(parts[: place + 1])


def allow(
    steps: Sequence[Step], bound: Bound, *, experts: int, threads: int, limit: int, taken: int = 0
) -> Allowance:
    """The pieces that let `threads` jobs at once stay within `limit` bytes, less those `taken`.

    ParameterError where the limit is too small for one job: a layer that must be merged as a whole.
    """
    room = limit - OVERHEAD - taken
    if room <= 0 and taken:
        raise ParameterError(
            f"{_gigabytes(limit)} of memory are too little: the model that is run takes "
            f"{_gigabytes(taken)}",
            remedy=f"allow more with --memory {_gigabytes(taken + 2 * OVERHEAD)} (memory=), or run "
            "it block by block (--offload, offload=True)",
        )
    piece = PIECE
    while True:
        needs = _needs(steps, bound, experts, threads, piece)
        total = sum(sorted((size for _, size in needs), reverse=True)[:threads])
        if total <= room or piece <= UNIT:
            break
        piece //= 2
    name, largest = max(needs, key=lambda need: need[1], default=("", 0))
    if largest > room:
        raise ParameterError(
            f"{_gigabytes(limit)} of memory are too little: this layer takes {_gigabytes(largest)} "
            f"with {experts} experts, beside {_gigabytes(OVERHEAD + taken)} for the "
            "program's own needs",
            tensor=name or None,
            remedy=f"allow more with --memory {_gigabytes(largest + OVERHEAD + taken)} (memory=)",
        )
    return Allowance(OVERHEAD + taken + min(total, room), room, piece)


def _needs(
    steps: Sequence[Step], bound: Bound, experts: int, threads: int, piece: int
) -> list[tuple[str, int]]:
    """Each job's layer and bytes; of one layer's jobs as many as may run at once."""
    found = []
    for step in steps:
        if step.action != "tie":
            pieces = cut_for(step, bound, piece)
            jobs = min(threads, len(stretches(pieces)))
            found += [(step.spec.name, bytes_of(step, bound, experts, pieces))] * jobs
    return found


def _gigabytes(size: int) -> str:
    """Rounded up, so that what is asked for is enough."""
    return f"{-(-size // 10_000_000) / 100:.2f}GB"
