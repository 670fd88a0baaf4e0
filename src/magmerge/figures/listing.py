"""A figure's numbers as a table of texts."""

from __future__ import annotations

from typing import NamedTuple

from magmerge.figures.document import Coefficients, Curves, Document, Ranking
from magmerge.figures.parts import part_of
from magmerge.figures.series import Mean, factors_of, series_of
from magmerge.report.account import differs


class Listing(NamedTuple):
    """Headings and rows; the first `words` columns are no numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int


def listing(document: Document) -> Listing:
    """The table of a figure: a row for each line, for each sensitive layer, or each calibration."""
    if isinstance(document, Curves):
        return _curves(document)
    return _sensitive(document) if isinstance(document, Ranking) else _summary(document)


def layers_listing(document: Document) -> Listing:
    """A row for each layer, where the figure shows layers."""
    if isinstance(document, Ranking):
        return _harms(document, [one.layer for one in document.layers])
    return _factors(document) if isinstance(document, Coefficients) else _curves(document)


def spoken(value: float, *, percent: bool) -> str:
    """A mean score as people read it."""
    return f"{100 * value:.1f}" if percent else f"{value:.4g}"


def spoken_range(mean: Mean, *, percent: bool) -> str:
    """The mean, and the least and the greatest draw where they differ as they are written."""
    value, low, high = (spoken(one, percent=percent) for one in (mean.value, mean.low, mean.high))
    return value if low == high else f"{value} [{low}, {high}]"


def _curves(document: Curves) -> Listing:
    rows = []
    for method in document.methods:
        for one in series_of(document, method):
            known = {mean.at: spoken_range(mean, percent=document.percent) for mean in one.means}
            cells = [known.get(at, known.get(None, "")) for at in document.values]
            rows.append((method, one.calibration, *cells))
    columns = [f"{at:g}" for at in document.values]
    return Listing(("merge", "calibration", *columns), tuple(rows), 2)


def _sensitive(document: Ranking) -> Listing:
    return _harms(document, list(document.sensitive))


def _harms(document: Ranking, names: list[str]) -> Listing:
    worse = {one.layer: one.worse for one in document.layers}
    places = {one.layer: place for place, one in enumerate(document.layers, 1)}
    ranks = {name: str(rank) for rank, name in enumerate(document.sensitive, 1)}
    rows = tuple(
        (name, part_of(name), ranks.get(name, ""), str(places[name]), f"{worse[name]:.4g}")
        for name in names
        if name in worse
    )
    return Listing(("layer", "part", "rank", "place", "worse"), rows, 2)


def _summary(document: Coefficients) -> Listing:
    rows = []
    for method in document.methods:
        for name in document.calibrations:
            found = factors_of(document, method, name)
            free, gated = [one.free for one in found], [one.gated for one in found]
            if not found:
                continue
            held = sum(differs(one.free, one.gated) for one in found)
            numbers = (sum(gated) / len(gated), sum(free) / len(free), min(free), max(free))
            texts = (str(len(found)), *(f"{one:.3f}" for one in numbers), str(held))
            rows.append((method, name, *texts))
    headings = (
        "layers",
        "mean xi",
        "mean asked for",
        "least",
        "greatest",
        "held by the gate",
    )
    return Listing(("merge", "calibration", *headings), tuple(rows), 2)


def _factors(document: Coefficients) -> Listing:
    columns = [(method, name) for method in document.methods for name in document.calibrations]
    cells: dict[str, dict[tuple[str, str], tuple[str, str]]] = {}
    marked = set()
    for column in columns:
        for one in factors_of(document, *column):
            cells.setdefault(one.layer, {})[column] = f"{one.free:.3f}", f"{one.gated:.3f}"
            marked |= {one.layer} if one.sensitive else set()
    heads = [text for method, name in columns for text in (f"{method} {name} free", "gated")]
    rows = tuple(
        (layer, "yes" if layer in marked else "", *_row(columns, own))
        for layer, own in cells.items()
    )
    return Listing(("layer", "sensitive", *heads), rows, 2)


def _row(
    columns: list[tuple[str, str]], own: dict[tuple[str, str], tuple[str, str]]
) -> tuple[str, ...]:
    return tuple(text for column in columns for text in own.get(column, ("", "")))
