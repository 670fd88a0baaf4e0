"""A plot while it is drawn: marks, upright lines, and the two axes, in two widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from magmerge.report.account import Module
from magmerge.report.axis import clamped, draw_factors, draw_layers
from magmerge.report.marks import SHAPES, Mark, reach
from magmerge.report.svg import COLOURS, DOTS, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = (920, 330), (360, 300)
"""Sizes in pixels, for a desk and for a hand."""
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 8, 28
LARGEST, SMALLEST = 8.5, 2.8
"""Widths of a mark."""
DENSE = 6
"""Pixels to a layer below which marks need all the ink, and lines should take little."""
CROWD = 1000
"""Marks of one kind from which on none is told from its neighbours, nor has a tooltip."""


class Point(NamedTuple):
    """A mark's place and value, and the tooltip on it."""

    place: float
    value: float
    tip: str


class Line(NamedTuple):
    """An upright line from one value to another."""

    place: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as SVG in two widths, and its legend: marks, and what lines stand for by colour."""

    wide: str
    narrow: str
    legend: tuple[Mark, ...]
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Sheet:
    """Axes that are being drawn on, the width of one layer, and the tooltips of marks so far."""

    axes: Axes
    pixels: float
    tips: dict[str, list[str]] = field(default_factory=dict)

    def put(self, mark: Mark, points: Sequence[Point], *, scale: float = 1.0) -> None:
        """Draw one series of marks, smaller where many stand close."""
        if not points:
            return
        if len(points) > CROWD:
            self._dot(mark, points, scale)
            return
        dense = self.pixels < DENSE
        name = f"marks-{len(self.tips)}"
        self.tips[name] = [point.tip for point in points]
        size = scale * min(LARGEST, max(SMALLEST, 0.62 * self.pixels))
        colour, paper = COLOURS[mark.colour], COLOURS["paper"]
        self.axes.plot(
            [point.place for point in points],
            [clamped(point.value) for point in points],
            marker=SHAPES[mark.shape],
            ls="none",
            ms=size * reach(mark.shape),
            mfc=colour if mark.filled else paper,
            mec=paper if mark.filled else colour,
            mew=(0.0 if dense else min(0.7, size / 10)) if mark.filled else min(1.3, size / 4),
            gid=name,
            clip_on=False,
            zorder=4,
        )

    def _dot(self, mark: Mark, points: Sequence[Point], scale: float) -> None:
        """Draw very many marks as one path: strokes without length, with round or square ends."""
        gap = math.nan
        self.axes.plot(
            [place for point in points for place in (point.place, point.place, gap)],
            [end for value in (clamped(p.value) for p in points) for end in (value, value, gap)],
            color=COLOURS[mark.colour],
            lw=0.6 * SMALLEST * scale,
            solid_capstyle="round" if mark.shape == "circle" else "projecting",
            clip_on=False,
            zorder=4,
        )

    def join(self, lines: Sequence[Line], colour: str, widest: float) -> None:
        """Draw upright lines below the marks."""
        gap = math.nan
        self.axes.plot(
            [place for line in lines for place in (line.place, line.place, gap)],
            [end for line in lines for end in (clamped(line.low), clamped(line.high), gap)],
            color=COLOURS["whisker" if self.pixels < DENSE and colour == "muted" else colour],
            lw=min(widest, max(0.35, 0.3 * self.pixels)),
            solid_capstyle="butt",
            zorder=3,
        )


def draw(
    name: str,
    label: str,
    modules: Sequence[Module],
    values: Sequence[float],
    paint: Callable[[Sheet], None],
) -> tuple[str, str]:
    """The wide and the narrow SVG of a plot of `values`, whose marks `paint` puts on a sheet."""
    from matplotlib.figure import Figure

    drawn = []
    for (width, height), word in ((WIDE, "wide"), (NARROW, "narrow")):
        figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS, facecolor="none")
        inner = width - LEFT - RIGHT, height - TOP - BOTTOM
        box = LEFT / width, BOTTOM / height, inner[0] / width, inner[1] / height
        axes = figure.add_axes(box, facecolor="none", frame_on=False)
        sheet = Sheet(axes, inner[0] / len(modules))
        paint(sheet)
        draw_factors(axes, [clamped(value) for value in values])
        draw_layers(axes, modules, inner[0])
        # Tooltips need a pointer, which narrow screens seldom have.
        tips = sheet.tips if word == "wide" else {}
        drawn.append(inline(figure, f"{name}-{word}", label, tips))
    return drawn[0], drawn[1]
