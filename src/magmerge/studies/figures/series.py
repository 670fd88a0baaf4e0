"""From points to lines and tables: the mean of the draws at each place, and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from magmerge.report.account import differs
from magmerge.studies.figures.captions import part_of
from magmerge.studies.figures.document import NONE, Coefficients, Curves, Document, Ranking

SUMMARY = ("layers", "mean xi", "mean asked for", "least", "greatest", "held by the gate")


class DrawMean(NamedTuple):
    """The mean of the draws at one place, the least and the greatest of them."""

    at: float | None
    value: float
    low: float
    high: float

    def text(self, *, percent: bool) -> str:
        """The mean, and the least and the greatest draw where they differ as they are written."""
        value, low, high = (f"{100 * x:.1f}" if percent else f"{x:.4g}" for x in self[1:])
        return value if low == high else f"{value} [{low}, {high}]"


class Series(NamedTuple):
    """One line of a figure; of one mean whose place is None where it is the same everywhere."""

    method: str
    calibration: str
    means: tuple[DrawMean, ...]


def series_of(document: Curves, method: str) -> list[Series]:
    """The lines of one merge that the document says to show, the merge alone first."""
    lines = []
    for calibration in dict.fromkeys((NONE, *document.calibrations)):
        draws: dict[float | None, list[float]] = {}
        for point in document.points:
            own = (point.method, point.calibration) == (method, calibration)
            if own and (point.seed or 0) < document.seeds:
                draws.setdefault(point.at, []).append(point.mean)
        means = tuple(
            DrawMean(at, sum(draws[at]) / len(draws[at]), min(draws[at]), max(draws[at]))
            for at in (None, *sorted(set(document.values)))
            if at in draws
        )
        if means:
            lines.append(Series(method, calibration, means))
    return lines


class MeanFactor(NamedTuple):
    """A layer's factor, after and before the gate: means over the draws."""

    layer: str
    sensitive: bool
    gated: float
    free: float


def factors_of(document: Coefficients, method: str, calibration: str) -> list[MeanFactor]:
    """The factors of each layer that has any, in the order of the model."""
    draws: dict[str, list[MeanFactor]] = {}
    for run in document.points:
        own = (run.method, run.calibration) == (method, calibration)
        if own and (run.seed or 0) < document.seeds:
            for layer in run.layers:
                if layer.xi is not None and layer.xi_free is not None:
                    factor = MeanFactor(layer.layer, layer.sensitive, layer.xi, layer.xi_free)
                    draws.setdefault(layer.layer, []).append(factor)
    return [
        MeanFactor(
            name,
            own[0].sensitive,
            sum(factor.gated for factor in own) / len(own),
            sum(factor.free for factor in own) / len(own),
        )
        for name, own in draws.items()
    ]


class Listing(NamedTuple):
    """A figure's numbers as a table of texts; the first `words` columns are no numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2


def listing(document: Document, *, layers: bool = False) -> Listing:
    """A row for each line, for each sensitive layer, or each calibration.

    With `layers` a row for each layer, where the figure shows layers.
    """
    if isinstance(document, Curves):
        return _curves(document)
    if isinstance(document, Ranking):
        names = [layer.layer for layer in document.layers] if layers else document.sensitive
        return _harms(document, names)
    return _factors(document) if layers else _summary(document)


def _curves(document: Curves) -> Listing:
    rows = []
    for method in document.methods:
        for line in series_of(document, method):
            known = {mean.at: mean.text(percent=document.percent) for mean in line.means}
            cells = [known.get(at, known.get(None, "")) for at in document.values]
            rows.append((method, line.calibration, *cells))
    columns = [f"{at:g}" for at in document.values]
    return Listing(("merge", "calibration", *columns), tuple(rows))


def _harms(document: Ranking, names: Sequence[str]) -> Listing:
    harms = {
        layer.layer: (str(place), f"{layer.worse:.4g}")
        for place, layer in enumerate(document.layers, 1)
    }
    ranks = {name: str(rank) for rank, name in enumerate(document.sensitive, 1)}
    rows = [
        (name, part_of(name), ranks.get(name, ""), *harms[name]) for name in names if name in harms
    ]
    return Listing(("layer", "part", "rank", "place", "worse"), tuple(rows))


def _summary(document: Coefficients) -> Listing:
    rows = []
    for method in document.methods:
        for name in document.calibrations:
            if not (factors := factors_of(document, method, name)):
                continue
            free, gated = [factor.free for factor in factors], [factor.gated for factor in factors]
            held = sum(differs(factor.free, factor.gated) for factor in factors)
            numbers = (sum(gated) / len(gated), sum(free) / len(free), min(free), max(free))
            texts = (f"{number:.3f}" for number in numbers)
            rows.append((method, name, str(len(factors)), *texts, str(held)))
    return Listing(("merge", "calibration", *SUMMARY), tuple(rows))


def _factors(document: Coefficients) -> Listing:
    columns = [(method, name) for method in document.methods for name in document.calibrations]
    cells: dict[str, list[str]] = {}
    for place, column in enumerate(columns):
        for factor in factors_of(document, *column):
            row = cells.setdefault(factor.layer, [""] * (1 + 2 * len(columns)))
            row[0] = row[0] or ("yes" if factor.sensitive else "")
            row[1 + 2 * place : 3 + 2 * place] = f"{factor.free:.3f}", f"{factor.gated:.3f}"
    heads = [text for column in columns for text in (f"{' '.join(column)} free", "gated")]
    return Listing(
        ("layer", "sensitive", *heads), tuple((name, *row) for name, row in cells.items())
    )
