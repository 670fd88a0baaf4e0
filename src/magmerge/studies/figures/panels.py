"""Panels of figures: scores of merges by calibration; sensitivity and factors of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from magmerge.report.account import differs
from magmerge.report.axis import common_stem, draw_factors, draw_layers, set_labels
from magmerge.report.sheet import Line, Mark, Point, Sheet
from magmerge.report.svg import COLOURS, tip
from magmerge.studies.figures.captions import NUMBERED, PARTS, PLACES, label_of, part_of, short_name
from magmerge.studies.figures.chart import draw_even, handle, look_of, open_chart
from magmerge.studies.figures.document import NONE, Coefficients, Curves, Ranking
from magmerge.studies.figures.series import MeanFactor, Series, factors_of, series_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
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
    titles = [short_name(own[0].method, 30) for own in lines] if len(lines) > 1 else [""]
    names = [line.calibration for own in lines for line in own]
    looks = {name: look_of(name, document.calibrations) for name in dict.fromkeys(names)}
    key = [handle(look, label_of(name), **_stroke(look, 2.2)) for name, look in looks.items()]
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
    label = f"{line.method}, {label_of(line.calibration)}"
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


SHEET_WIDTH, INNER = 860.0, 780.0
"""Points, of the sheet and about of a panel's inside."""
LARGEST, SMALLEST, PROMINENT = 7.0, 2.5, 5.5
"""Widths of a mark; the last one of a sensitive layer, at least."""
SHARES = frozenset({"drift", "accuracy"})
"""Scores that people read in percent."""
SENSITIVE, SENSITIVE_KEY = "#fbeadf", "#f0c3a5"
"""Behind sensitive layers, and in the key, where it is small."""
SHIFT = 0.2
"""How far marks of one layer stand from its middle, in layers."""
COLOURS_OF_PARTS = (
    "series-1", "series-2", "series-3", "series-1", "series-4", "#8a6d00", "#2f97cf", "muted",
)  # fmt: skip
SHAPES_OF_PARTS = ("circle", "square", "up", "plus", "diamond", "down", "dash", "cross")


def ranking_chart(document: Ranking) -> Figure:
    """Each layer's sensitivity, the most sensitive ones filled and numbered."""
    names = [layer.layer for layer in document.layers]
    parts = [part_of(name) for name in names]
    looks = zip(PARTS, SHAPES_OF_PARTS, COLOURS_OF_PARTS, strict=True)
    filled = {part: Mark(part, shape, colour) for part, shape, colour in looks}
    hollow = {part: Mark(part, mark.shape, mark.colour, False) for part, mark in filled.items()}
    key = [handle(mark, part) for part, mark in filled.items() if part in parts]
    figure, (axes,) = open_chart(document, [""], 1, (SHEET_WIDTH, 320), key)
    factor = 100.0 if document.score in SHARES else 1.0
    values = [factor * layer.worse for layer in document.layers]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = (high - low) or 1.0
    draw_even(axes, low - 0.03 * room * (low < 0), high + 0.1 * room)
    _along(axes, names)
    _name_axis(axes, names)
    axes.axhline(0, color=COLOURS["muted"], lw=0.8, zorder=1)
    pixels = INNER / max(1, len(names))
    sheet = Sheet(axes, pixels)
    sheet.join([Line(n, 0, value) for n, value in enumerate(values)], "#c9cdd2", 1.2)
    size = min(LARGEST, max(SMALLEST, 0.7 * pixels))
    ranks = {name: rank for rank, name in enumerate(document.sensitive, 1)}
    for place, (layer, value, part) in enumerate(zip(document.layers, values, parts, strict=True)):
        point = Point(place, value, f"{layer.layer}: {layer.worse:.6g}")
        if layer.layer not in ranks:
            sheet.put(hollow[part], [point], size=size)
            continue
        sheet.put(filled[part], [point], size=max(1.2 * size, PROMINENT))
        if len(names) <= NUMBERED:
            axes.annotate(str(ranks[layer.layer]), (place, value), (0, 0.5 * size + 3), ha="center",
                          textcoords="offset points", size=7.5, color=COLOURS["ink"])  # fmt: skip
    return figure


def coefficient_chart(document: Coefficients) -> Figure:
    """A panel for each merge: each layer's factors beside each other, and what the gate did."""
    names = document.calibrations
    panels_of = {
        method: own
        for method in document.methods
        if any(own := [factors_of(document, method, name) for name in names])
    }
    runs = [factors for own in panels_of.values() for factors in own]
    layers = _all_layers(runs)
    titles = [short_name(name, 40) for name in panels_of] if len(panels_of) > 1 else [""]
    looks = [look_of(name, names) for name in names]
    height = 300 if len(titles) == 1 else 245
    key = _key(document, looks, [factor for factors in runs for factor in factors])
    figure, panels = open_chart(document, titles, 1, (SHEET_WIDTH, height), key)
    sensitive = {factor.layer for factors in runs for factor in factors if factor.sensitive}
    for number, axes in enumerate(panels):
        draw_factors(
            axes, [end for own in runs for factor in own for end in (factor.free, factor.gated)]
        )
        _along(axes, layers)
        for place, layer in enumerate(layers):
            if layer in sensitive:
                axes.axvspan(place - 0.5, place + 0.5, color=SENSITIVE, lw=0, zorder=0.5)
        for index, factors in enumerate(list(panels_of.values())[number] if panels_of else ()):
            shift = SHIFT * (2 * index - len(names) + 1)
            places = {layer: place + shift for place, layer in enumerate(layers)}
            sheet = Sheet(axes, INNER / max(1, len(layers)), crowd=math.inf)
            _factors(sheet, factors, places, looks[index])
    _name_axis(panels[-1], layers)
    return figure


def _key(
    document: Coefficients, looks: Sequence[Mark], factors: Sequence[MeanFactor]
) -> list[Artist]:
    held = any(differs(factor.free, factor.gated) for factor in factors)
    key = []
    for name, look in zip(document.calibrations, looks, strict=True):
        key.append(handle(look, f"{label_of(name)}{', applied' if held else ''}"))
        if held:
            key.append(handle(_hollow(look), f"{label_of(name)}, asked for"))
    if any(factor.sensitive for factor in factors):
        key.append(handle(Mark("", "square", SENSITIVE_KEY), "sensitive layer"))
    return key


def _hollow(look: Mark) -> Mark:
    return Mark(look.meaning, look.shape, look.colour, filled=False)


def _all_layers(runs: Sequence[Sequence[MeanFactor]]) -> list[str]:
    """The layers of all calibrations, in the order of the model: the longest list has it."""
    longest_first = sorted(runs, key=len, reverse=True)
    return list(dict.fromkeys(factor.layer for run in longest_first for factor in run))


def _factors(
    sheet: Sheet, factors: Sequence[MeanFactor], places: dict[str, float], look: Mark
) -> None:
    """Filled marks for what is applied, hollow ones for what the gate did not give."""
    size = min(LARGEST, max(SMALLEST, 0.45 * sheet.pixels))
    held = [factor for factor in factors if differs(factor.free, factor.gated)]
    sheet.join(
        [Line(places[factor.layer], factor.free, factor.gated) for factor in held], look.paint, 0.7
    )
    tips = {
        factor.layer: f"{factor.layer}: asked for {factor.free:.6g}, applied {factor.gated:.6g}"
        for factor in factors
    }
    free = [Point(places[factor.layer], factor.free, tips[factor.layer]) for factor in held]
    sheet.put(_hollow(look), free, size=0.8 * size)
    gated = [Point(places[factor.layer], factor.gated, tips[factor.layer]) for factor in factors]
    sheet.put(look, gated, size=size)


def _along(axes: Axes, names: Sequence[str]) -> None:
    draw_layers(axes, names, INNER)


def _name_axis(axes: Axes, names: Sequence[str]) -> None:
    stem = common_stem(names)
    counted = f" (number of {short_name(stem.strip('._'))})" if stem else ""
    axes.set_xlabel(f"layers in the order of the model, by block{counted}", labelpad=6)
