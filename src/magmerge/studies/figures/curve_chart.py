"""Figures of scores: a panel for each merge, a line for each calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from magmerge.report.axis import set_labels
from magmerge.report.sheet import Mark, Point, Sheet
from magmerge.report.svg import COLOURS, tip
from magmerge.studies.figures.captions import PLACES, shown, spoken
from magmerge.studies.figures.chart import draw_even, handle, look_of, open_chart
from magmerge.studies.figures.document import NONE, Curves
from magmerge.studies.figures.series import Series, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 640.0
HEIGHTS = {1: 330.0, 2: 280.0, 3: 230.0}
"""Of a panel, by how many stand beside each other."""
ROOM = 0.08
"""Part of the range that is left free above and below."""
SMALLER = 1.25
"""By how much letters are smaller here than on the report's axes."""
LEAST_RANGE = 0.01
"""Points of score that a panel spans at least where no sampling error is known."""


def curve_chart(document: Curves) -> Figure:
    """The figure of samples, lambda or alpha."""
    lines = [series for method in document.methods if (series := series_of(document, method))]
    factor = 100.0 if document.percent else 1.0
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(lines), 3)
    titles = [shown(own[0].method, 30) for own in lines] if len(lines) > 1 else [""]
    names = [line.calibration for own in lines for line in own]
    looks = {name: look_of(name, document.calibrations) for name in dict.fromkeys(names)}
    key = [handle(look, spoken(name), **_stroke(look, 2.2)) for name, look in looks.items()]
    figure, panels = open_chart(document, titles, columns, (WIDTH, HEIGHTS[columns]), key)
    low, high = _range(document, factor, [line for own in lines for line in own])
    for number, axes in enumerate(panels):
        _across(axes, document, SMALLER * (WIDTH / columns - 70))
        draw_even(axes, low, high)
        for place, line in enumerate(lines[number] if lines else ()):
            # Later lines are thinner, so that equal ones show each other.
            _draw(axes, line, document, factor, looks[line.calibration], 2.6 - 0.3 * min(place, 4))
        if number + columns >= len(panels):
            name = PLACES[document.kind]
            axes.set_xlabel(name if columns < 3 else name.partition(",")[0], labelpad=6)
    return figure


def _stroke(look: Mark, width: float) -> dict[str, Any]:
    dashes = (0, (4, 2.5)) if look.meaning == NONE else "-"
    return {"color": look.paint, "ls": dashes, "lw": width - 0.4}


def _range(document: Curves, factor: float, lines: Sequence[Series]) -> tuple[float, float]:
    """All lines and bands; at least two sampling errors, so that chance does not look large."""
    values = [
        end * factor for line in lines for mean in line.means for end in (mean.low, mean.high)
    ]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    least = LEAST_RANGE * factor if document.percent else 0.02 * abs(high)
    least = max(least, 2 * factor * (document.error or 0.0), 1e-6)
    missing = max(0.0, least - (high - low))
    low, high = low - missing / 2, high + missing / 2
    room = ROOM * (high - low)
    return low - room, high + room


def _across(axes: Axes, document: Curves, width: float) -> None:
    """Ticks at the places themselves, as far as their labels find room."""
    places = sorted(set(document.values)) or [0.0]
    low, high = places[0], places[-1]
    if document.kind == "samples" and low > 0:
        axes.set_xscale("log")
        edge = (high / low) ** 0.04 if high > low else 2.0
        axes.set_xlim(low / edge, high * edge)
    else:
        edge = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - edge, high + edge)
    set_labels(axes, [(place, f"{place:g}") for place in (low, high, *places[1:-1])], width)
    axes.tick_params(axis="x", length=3, width=0.8, color=COLOURS["muted"], pad=4)
    axes.plot(
        [0, 1], [0, 0], color=COLOURS["muted"], lw=0.8, transform=axes.transAxes, clip_on=False
    )
    if document.kind == "lambda" and low < 1 < high:
        axes.axvline(1, color=COLOURS["rule"], lw=0.8, zorder=0)


def _draw(
    axes: Axes, line: Series, document: Curves, factor: float, look: Mark, width: float
) -> None:
    """One line, its band, and a mark at each place."""
    label = f"{line.method}, {spoken(line.calibration)}"
    texts = [mean.text(percent=document.percent) for mean in line.means]
    stroke = _stroke(look, width)
    if line.means[0].at is None:
        stroke["lw"] = min(stroke["lw"], 1.8)
        mean = line.means[0].value * factor
        axes.axhline(mean, gid=tip(f"{label}: {texts[0]}"), zorder=3, **stroke)
        return
    across = [float(mean.at or 0) for mean in line.means]
    low, high = (
        [mean.low * factor for mean in line.means],
        [mean.high * factor for mean in line.means],
    )
    if low != high:
        axes.fill_between(across, low, high, color=look.paint, alpha=0.16, lw=0, zorder=2)
    up = [mean.value * factor for mean in line.means]
    axes.plot(across, up, zorder=3, clip_on=False, **stroke)
    tips = [f"{label}, {at:g}: {text}" for at, text in zip(across, texts, strict=True)]
    Sheet(axes, 100).put(look, list(map(Point, across, up, tips)), size=2.6 + 1.8 * width)
