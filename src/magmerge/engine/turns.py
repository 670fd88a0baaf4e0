"""A layer whose experts are read one after the other, merged whole and calibrated by parts"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

from magmerge.core import journal
from magmerge.core.lazy import Tensor, torch
from magmerge.core.types import Piece, Step
from magmerge.engine.layer import Calibrated, Merged, Tally, calibrate_layer
from magmerge.engine.memory import parts_of
from magmerge.engine.reader import Reader
from magmerge.engine.stages import Treatment
from magmerge.linalg.in_turn import InTurn


def in_turn(reader: Reader, step: Step, piece: Piece) -> InTurn:
    """The task vectors of one piece, a whole matrix, each of which is read when it is asked for."""
    voters = tuple(range(len(reader.voters(step)))) if step.voters is None else step.voters

    def read(place: int | None, start: int, stop: int) -> Tensor:
        own = step if place is None else replace(step, voters=(voters[place],))
        run = Piece(piece.start + start, piece.start + stop, (stop - start,), 1)
        return reader.experts(own, run, reader.base(own, run), "deltas")

    dtype = torch.float64 if step.wide else torch.float32
    return InTurn(read, (len(voters), *piece.shape), dtype)


def treated_in_turn(
    reader: Reader,
    step: Step,
    piece: Piece,
    treatment: Treatment,
    merge: Callable[[InTurn], Tensor],
) -> Calibrated:
    """One piece, merged as a whole and calibrated by such parts as that allows."""
    with journal.listening() as notes:
        delta = merge(in_turn(reader, step, piece)).contiguous()
    weight, tallies = torch.empty_like(delta), []
    for part in parts_of(step, treatment, piece):
        place = slice(part.start - piece.start, part.stop - piece.start)
        base = reader.base(step, part)
        deltas = base.new_empty((0, *base.shape))
        if treatment.of(step):
            deltas = reader.experts(step, part, base, "deltas", seen=True)
        merged = Merged(delta.view(-1)[place].reshape(part.shape))
        done = calibrate_layer(step, part, treatment, base, deltas, merged)
        weight.view(-1)[place] = done.weight.reshape(-1)
        delta.view(-1)[place] = done.delta.reshape(-1)
        tallies.append(done.tally)
    return Calibrated(weight, delta, _joined(tallies, tuple(notes)))


def _joined(tallies: list[Tally], notes: tuple[str, ...]) -> Tally:
    """The tally of a piece from those of its parts, in their order."""

    def rows(columns: Iterable[Iterable[tuple[float, ...]]]) -> tuple[tuple[float, ...], ...]:
        return tuple(flat(parts) for parts in zip(*columns, strict=True))

    def flat(parts: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(chain.from_iterable(parts))

    return Tally(
        xi=flat(tally.xi for tally in tallies),
        free=rows(tally.free for tally in tallies),
        gated=rows(tally.gated for tally in tallies),
        over=flat(tally.over for tally in tallies),
        experts=rows(tally.experts for tally in tallies),
        cosines=flat(tally.cosines for tally in tallies),
        before=flat(tally.before for tally in tallies),
        after=flat(tally.after for tally in tallies),
        notes=notes,
    )
