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
from magmerge.types import Piece, Step

FIXED_COPIES = 4
"""Tensors of a piece's size beside the experts': base, what is read, result, its cast."""
OVERHEAD = 120_000_000
"""Bytes for all that does not grow with the pieces: code loaded late, candidates, records."""
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


def allow(
    steps: Sequence[Step], bound: Bound, *, experts: int, threads: int, limit: int
) -> Allowance:
    """The pieces that let `threads` jobs at once stay within `limit` bytes.

    ParameterError where the limit is too small for one job: a layer that must be merged as a whole.
    """
    room = limit - OVERHEAD
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
            f"with {experts} experts, beside {_gigabytes(OVERHEAD)} for the program's own needs",
            tensor=name or None,
            remedy=f"allow more with --memory {_gigabytes(largest + OVERHEAD)} (memory=)",
        )
    return Allowance(OVERHEAD + min(total, room), room, piece)


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
