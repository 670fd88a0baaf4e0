"""Figures of layers in the order of the model: how sensitive they are, and their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from magmerge.report.account import differs
from magmerge.report.axis import common_stem, draw_factors, draw_layers
from magmerge.report.sheet import Line, Mark, Point, Sheet
from magmerge.report.svg import COLOURS
from magmerge.studies.figures.captions import NUMBERED, PARTS, part_of, shown, spoken
from magmerge.studies.figures.chart import draw_even, handle, look_of, open_chart
from magmerge.studies.figures.document import Coefficients, Ranking
from magmerge.studies.figures.series import MeanFactor, factors_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, INNER = 860.0, 780.0
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
    figure, (axes,) = open_chart(document, [""], 1, (WIDTH, 320), key)
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
    titles = [shown(name, 40) for name in panels_of] if len(panels_of) > 1 else [""]
    looks = [look_of(name, names) for name in names]
    height = 300 if len(titles) == 1 else 245
    key = _key(document, looks, [factor for factors in runs for factor in factors])
    figure, panels = open_chart(document, titles, 1, (WIDTH, height), key)
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
        key.append(handle(look, f"{spoken(name)}{', applied' if held else ''}"))
        if held:
            key.append(handle(_hollow(look), f"{spoken(name)}, asked for"))
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
    counted = f" (number of {shown(stem.strip('._'))})" if stem else ""
    axes.set_xlabel(f"layers in the order of the model, by block{counted}", labelpad=6)
