"""Means, intervals, shares of the gap and the issue's bars, from the files of results alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from benchmarks.league.cells import CHECKED, MAGIC, Cell
from benchmarks.league.results import Book
from benchmarks.suites.law import NORMAL, Right, mean, paired

LEAST = Cell("average", "tuned")


class Gain(NamedTuple):
    """A difference in points of accuracy, and half of its 95 % interval."""

    points: float
    half: float

    @property
    def text(self) -> str:
        """As the tables have it."""
        return f"{self.points:+.1f} ± {self.half:.1f}"


def difference(one: Right, other: Right) -> Gain:
    """How much better `one` is on the same rows. The interval is that of the rows, after the mean
    over draws: what other draws would give is not in it.
    """
    points, error = paired(one, other)
    return Gain(100 * points, 100 * NORMAL * error)


def known(book: Book, cell: Cell) -> Right | None:
    """How often each test row was answered rightly over the draws; None where there is none."""
    draws = [book.right(one) for one in book.draws(cell)]
    if not draws:
        return None
    return {task: torch.stack([one[task].double() for one in draws]).mean(0) for task in draws[0]}


def score(book: Book, cell: Cell) -> float | None:
    """The accuracy in percent over the draws that are known."""
    rows = known(book, cell)
    return None if rows is None else 100 * mean(rows)


def spread(book: Book, cell: Cell) -> tuple[float, float]:
    """The least and the greatest accuracy in percent over the draws."""
    scores = [100 * mean(book.right(one)) for one in book.draws(cell)]
    return min(scores), max(scores)


def closed(book: Book, cell: Cell) -> float | None:
    """The share, in percent, of the way from the tuned average to the experts."""
    own, low, high = (score(book, one) for one in (cell, LEAST, Cell("experts")))
    return None if own is None or low is None or high is None else 100 * (own - low) / (high - low)


class Entry(NamedTuple):
    """A recipe at one number of rows: the share of the gap it closes on each suite."""

    cell: Cell
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the suites."""
        return sum(self.shares) / len(self.shares)


def ranking(books: Sequence[Book], rows: int) -> list[Entry]:
    """All recipes of that many rows that are known on every suite, the best first.

    Those that see labels (the tuned factor) and the controls are left out.
    """
    found = []
    for cell in dict.fromkeys(one._replace(seed=0) for book in books for one in book.lines):
        if (
            cell.rows != rows
            or cell.calibrate in ("tuned", *CHECKED)
            or cell.merge in ("base", "experts")
        ):
            continue
        shares = [closed(book, cell) for book in books]
        if None not in shares:
            found.append(Entry(cell, tuple(one for one in shares if one is not None)))
    return sorted(found, key=lambda one: -one.mean)


class Calibrated(NamedTuple):
    """What MAGIC did to one merge of one suite."""

    suite: str
    cell: Cell
    gain: Gain
    draws: int

    @property
    def lowered(self) -> bool:
        """Whether the merge lost more than the interval."""
        return self.gain.points + self.gain.half < 0


def magic(books: Iterable[Book], names: Sequence[str] = MAGIC) -> list[Calibrated]:
    """FSC and DSC against the merge as it is, on all suites."""
    found = []
    for book in books:
        for cell in dict.fromkeys(one._replace(seed=0) for one in book.lines):
            plain = known(book, Cell(cell.merge))
            if cell.calibrate not in names or plain is None:
                continue
            own = known(book, cell)
            assert own is not None
            gain = difference(own, plain)
            found.append(Calibrated(book.suite, cell, gain, len(book.draws(cell))))
    return found
