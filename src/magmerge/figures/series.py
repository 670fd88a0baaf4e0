"""From points to lines: the mean of the draws at each place, and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from magmerge.figures.document import NONE, Coefficients, Curves, Factors


class Mean(NamedTuple):
    """The mean of `draws` draws at one place, the least and the greatest of them."""

    at: float | None
    value: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure; of one mean without a place where it is the same everywhere."""

    method: str
    calibration: str
    means: tuple[Mean, ...]

    @property
    def flat(self) -> bool:
        """Whether the place does not matter."""
        return len(self.means) == 1 and self.means[0].at is None


def series_of(document: Curves, method: str) -> list[Series]:
    """The lines of one merge that the document says to show, the merge alone first."""
    found = []
    for calibration in (NONE, *(one for one in document.calibrations if one != NONE)):
        own = [
            point
            for point in document.points
            if (point.method, point.calibration) == (method, calibration)
            and (point.seed is None or point.seed < document.seeds)
        ]
        means = []
        for at in (None, *sorted(set(document.values))):
            values = [point.mean for point in own if point.at == at]
            if values:
                means.append(_mean(at, values))
        if means:
            found.append(Series(method, calibration, tuple(means)))
    return found


def _mean(at: float | None, values: Sequence[float]) -> Mean:
    return Mean(at, sum(values) / len(values), min(values), max(values), len(values))


class Factor(NamedTuple):
    """A layer's factor, after and before the gate: means over the draws."""

    layer: str
    sensitive: bool
    gated: float
    free: float


def factors_of(document: Coefficients, method: str, calibration: str) -> list[Factor]:
    """The factors of each layer that has any, in the order of the model."""
    runs = [
        one
        for one in document.points
        if (one.method, one.calibration) == (method, calibration)
        and (one.seed is None or one.seed < document.seeds)
    ]
    return [
        Factor(name, sensitive, sum(gated) / len(gated), sum(free) / len(free))
        for name, sensitive, gated, free in _by_layer(runs)
    ]


def _by_layer(runs: Sequence[Factors]) -> list[tuple[str, bool, list[float], list[float]]]:
    found: dict[str, tuple[bool, list[float], list[float]]] = {}
    for run in runs:
        for one in run.layers:
            if one.xi is not None and one.xi_free is not None:
                _, gated, free = found.setdefault(one.layer, (one.sensitive, [], []))
                gated.append(one.xi)
                free.append(one.xi_free)
    return [(name, *rest) for name, rest in found.items()]
