"""Figures of scores: a panel for each merge, a line for each calibration, named at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from magmerge.figures.axis import SIZE, draw_even
from magmerge.figures.canvas import Box, Canvas, Grid, Text, marker, open_canvas, shown, width_of
from magmerge.figures.document import Curves
from magmerge.figures.listing import spoken_range
from magmerge.figures.palette import MUTED, RULE, Look, look_of, spoken_calibration
from magmerge.figures.series import Series, series_of
from magmerge.figures.wording import PLACES, axis_of, notes_of, subtitle_of, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 640.0
HEIGHTS = {1: 270.0, 2: 220.0, 3: 170.0}
"""Of a panel, by how many stand beside each other."""
APART = 1.25
"""Distance of two names at line ends, in heights of their letters."""
ROOM = 0.08
"""Part of the range that is left free above and below."""
LEAST_RANGE = 0.01
"""Points of score that a panel spans at least where no sampling error is known."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The vertical axis that all panels share, from `low` to `high` in what is shown."""

    low: float
    high: float
    factor: float

    def place(self, value: float, box: Box) -> float:
        """Points above the sheet's lower edge."""
        return box.bottom + box.height * (value * self.factor - self.low) / (self.high - self.low)


def curve_chart(document: Curves) -> Canvas:
    """The figure of samples, lambda or alpha."""
    lines = {method: series_of(document, method) for method in document.methods}
    lines = {method: found for method, found in lines.items() if found}
    names = [spoken_calibration(one.calibration) for found in lines.values() for one in found]
    several = len(lines) > 1
    columns = {1: 1, 2: 2, 4: 2}.get(len(lines), 3) if lines else 1
    room = max([width_of(shown(name, 16), SIZE) for name in names], default=0.0) + 16
    grid = Grid(
        columns,
        [shown(method, 30) if several else "" for method in lines] or [""],
        HEIGHTS[columns],
        left=34,
        right=room,
        below=24,
    )
    text = Text(title_of(document), subtitle_of(document), notes_of(document), axis_of(document))
    canvas = open_canvas(text, grid, WIDTH)
    scale = _scale(document, [one for found in lines.values() for one in found])
    others = tuple(dict.fromkeys(document.calibrations))
    for number, (axes, box) in enumerate(canvas.panels):
        own = list(lines.values())[number] if lines else []
        _across(axes, document, box)
        draw_even(axes, scale.low, scale.high)
        for place, one in enumerate(own):
            look = look_of(one.calibration, others)
            _draw(canvas, axes, one, document, scale, look, 2.6 - 0.3 * min(place, 4))
        ends = [_end(axes, box, one, scale) for one in own]
        _name(canvas, box, own, ends, others)
        lowest = number + columns >= len(grid.titles)
        if lowest:
            axes.set_xlabel(_fitting(PLACES[document.kind], box.width), size=SIZE, labelpad=6)
    return canvas


def _fitting(text: str, width: float) -> str:
    """The text, or its first part if there is no room for all."""
    return text if width_of(text, SIZE) <= width + 30 else text.partition(",")[0]


def _scale(document: Curves, lines: Sequence[Series]) -> Scale:
    """All lines and bands; at least two sampling errors, so that chance does not look large."""
    factor = 100.0 if document.percent else 1.0
    values = [end * factor for one in lines for mean in one.means for end in (mean.low, mean.high)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    least = LEAST_RANGE * factor if document.percent else 0.02 * abs(high)
    if document.error is not None:
        least = max(least, 2 * factor * document.error)
    missing = max(0.0, least - (high - low), 1e-6 - (high - low))
    low, high = low - missing / 2, high + missing / 2
    room = ROOM * (high - low)
    return Scale(low - room, high + room, factor)


def _across(axes: Axes, document: Curves, box: Box) -> None:
    """Ticks at the places themselves, as far as their labels find room."""
    places = sorted(set(document.values)) or [0.0]
    logarithmic = document.kind == "samples" and places[0] > 0
    low, high = places[0], places[-1]
    if logarithmic:
        axes.set_xscale("log")
        edge = (high / low) ** 0.04 if high > low else 2.0
        axes.set_xlim(low / edge, high * edge)
    else:
        edge = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - edge, high + edge)
    kept = _with_room(places, axes, box)
    axes.set_xticks(kept, [f"{place:g}" for place in kept], size=SIZE)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=3, width=0.8, color=MUTED, pad=4)
    axes.plot([0, 1], [0, 0], color=MUTED, lw=0.8, transform=axes.transAxes, clip_on=False)
    if document.kind == "lambda" and low < 1 < high:
        axes.axvline(1, color=RULE, lw=0.8, zorder=0)


def _with_room(places: Sequence[float], axes: Axes, box: Box) -> list[float]:
    """The first, the last, and those between whose labels do not touch."""
    least, greatest = axes.get_xlim()
    bend = math.log if axes.get_xscale() == "log" else float
    step = box.width / (bend(greatest) - bend(least))
    half = {place: width_of(f"{place:g}", SIZE) / 2 + 3 for place in places}

    def apart(first: float, second: float) -> bool:
        return (bend(second) - bend(first)) * step >= half[first] + half[second]

    kept, last = [places[0]], places[-1]
    for place in places[1:-1]:
        if apart(kept[-1], place) and apart(place, last):
            kept.append(place)
    return kept if last == places[0] else [*kept, last]


def _draw(
    canvas: Canvas,
    axes: Axes,
    one: Series,
    document: Curves,
    scale: Scale,
    look: Look,
    wide: float,
) -> None:
    """One line `wide` points wide; later lines are thinner, so that equal ones show each other."""
    name = f"line-{len(canvas.tips)}"
    label = f"{one.method}, {spoken_calibration(one.calibration)}"
    canvas.tips[name] = [
        f"{label}{'' if mean.at is None else f', {mean.at:g}'}: "
        f"{spoken_range(mean, percent=document.percent)}"
        for mean in one.means
    ]
    dashes: dict[str, Any] = {} if look.dashes is None else {"dashes": look.dashes}
    if one.flat:
        mean = one.means[0].value * scale.factor
        axes.plot(
            [0, 1],
            [mean, mean],
            color=look.colour,
            lw=min(wide - 0.4, 1.8),
            gid=name,
            zorder=3,
            transform=axes.get_yaxis_transform(),
            **dashes,
        )
        return
    across = [float(mean.at or 0) for mean in one.means]
    if any(mean.high > mean.low for mean in one.means):
        low = [mean.low * scale.factor for mean in one.means]
        high = [mean.high * scale.factor for mean in one.means]
        axes.fill_between(across, low, high, color=look.colour, alpha=0.16, lw=0, zorder=2)
    axes.plot(
        across,
        [mean.value * scale.factor for mean in one.means],
        color=look.colour,
        lw=wide - 0.4,
        gid=name,
        zorder=4,
        clip_on=False,
        **marker(look, 2.6 + 1.8 * wide),
        **dashes,
    )


def _end(axes: Axes, box: Box, one: Series, scale: Scale) -> tuple[float, float]:
    """Where a line ends on the sheet."""
    last = one.means[-1]
    low, high = axes.get_xlim()
    bend = math.log if axes.get_xscale() == "log" else float
    share = 1.0
    if last.at is not None:
        share = (bend(last.at) - bend(low)) / (bend(high) - bend(low))
    return box.left + share * box.width, scale.place(last.value, box)


def _name(
    canvas: Canvas,
    box: Box,
    lines: Sequence[Series],
    ends: Sequence[tuple[float, float]],
    others: tuple[str, ...],
) -> None:
    """Each line's name at its right end, with a thin line to it where it had to make room."""
    right = box.left + box.width
    given = spread([y for _, y in ends], APART * SIZE, box.bottom, box.bottom + box.height)
    for one, (x, end), y in zip(lines, ends, given, strict=True):
        look = look_of(one.calibration, others)
        if abs(y - end) > 1:
            across, up = [min(x + 5, right + 2), right + 3, right + 8], [end, end, y]
            canvas.line(across, up, color=look.colour, lw=0.7)
        text = shown(spoken_calibration(one.calibration), 16)
        colour = MUTED if look.dashes else look.colour
        canvas.write(right + 10, y, text, SIZE, colour, va="center_baseline", weight="bold")


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places in the same order, `apart` or more from each other, as near as can be to `wanted`.

    Within `low` and `high` as far as there is room.
    """
    groups: list[tuple[float, list[int]]] = []

    def grouped(middle: float, members: list[int]) -> tuple[float, list[int]]:
        half = apart * (len(members) - 1) / 2
        return max(low + half, min(high - half, middle)), members

    for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
        groups.append(grouped(wanted[place], [place]))
        while len(groups) > 1:
            (_, below), (_, above) = groups[-2:]
            if groups[-1][0] - groups[-2][0] >= apart * (len(below) + len(above)) / 2:
                break
            members = [*below, *above]
            middle = sum(wanted[one] for one in members) / len(members)
            groups[-2:] = [grouped(middle, members)]
    found = [0.0] * len(wanted)
    for middle, members in groups:
        for number, place in enumerate(members):
            found[place] = middle + apart * (number - (len(members) - 1) / 2)
    return found
