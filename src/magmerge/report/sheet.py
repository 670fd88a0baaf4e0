"""A plot while it is drawn: marks, upright lines, and the two axes, in two widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.report.axis import draw_factors, draw_layers
from magmerge.report.svg import COLOURS, DOTS, inline, tip

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

DASH = ((-1.0, 0.28), (1.0, 0.28), (1.0, -0.28), (-1.0, -0.28), (-1.0, 0.28))
SHAPES: dict[str, Any] = {
    "circle": "o",
    "square": "s",
    "up": "^",
    "diamond": "D",
    "plus": "P",
    "down": "v",
    "cross": "X",
    "dash": DASH,
}
"""matplotlib's marker of each shape."""
SCALES = {"circle": 1.0, "square": 0.9, "diamond": 0.85}
"""Marks of one size cover about one area; 1.15 for all others."""
EXPERT_SHAPES = ("circle", "square", "up", "diamond", "plus", "down", "cross")


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of mark: what it stands for, its shape, colour and whether it is filled.

    The colour is one of the page's by its name, or any other as #rrggbb.
    """

    meaning: str
    shape: str
    colour: str
    filled: bool = True

    @property
    def paint(self) -> str:
        """The colour as matplotlib takes it."""
        return COLOURS.get(self.colour, self.colour)

    def look(self, size: float, *, rim: bool = True) -> dict[str, Any]:
        """matplotlib's words for a mark of `size` points; `rim` parts it from its neighbours."""
        paper = COLOURS["paper"]
        return {
            "marker": SHAPES[self.shape],
            "markersize": size * SCALES.get(self.shape, 1.15),
            "markerfacecolor": self.paint if self.filled else paper,
            "markeredgecolor": paper if self.filled else self.paint,
            "markeredgewidth": min(0.7, size / 10) * rim if self.filled else min(1.3, size / 4),
        }

    @property
    def points(self) -> str:
        """The corners for an SVG polygon of twelve units' width, whose y grows downwards."""
        from matplotlib.markers import MarkerStyle

        style = MarkerStyle(SHAPES[self.shape])
        corners: Any = style.get_path().transformed(style.get_transform()).to_polygons()[0]
        scale = 9 * SCALES.get(self.shape, 1.15)
        return " ".join(f"{6 + scale * x:.2f},{6 - scale * y:.2f}" for x, y in corners)


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


class Marks(NamedTuple):
    """A series of marks, `scale` as wide as others are."""

    mark: Mark
    points: Sequence[Point]
    scale: float = 1.0


class Strokes(NamedTuple):
    """A series of lines, and what they stand for if the legend is to tell."""

    lines: Sequence[Line]
    colour: str
    widest: float
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as SVG in two widths, and its legend: marks, and what lines stand for by colour."""

    wide: str
    narrow: str
    legend: tuple[Mark, ...]
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """Axes whose limits are set, and the width of one layer in pixels.

    `tips`: whether marks have tooltips; `crowd`: from how many of one kind on they have none.
    """

    axes: Axes
    pixels: float
    tips: bool = True
    crowd: float = CROWD

    def put(
        self, mark: Mark, points: Sequence[Point], *, scale: float = 1.0, size: float | None = None
    ) -> None:
        """Draw one series of marks, smaller where many stand close."""
        if size is None:
            size = scale * min(LARGEST, max(SMALLEST, 0.62 * self.pixels))
        if len(points) > self.crowd:
            # Strokes without length, with round or square ends, are one path.
            cap = "round" if mark.shape == "circle" else "projecting"
            spots = [Line(point.place, point.value, point.value) for point in points]
            self._strokes(spots, mark.paint, 0.6 * SMALLEST * scale, cap, 4)
            return
        from matplotlib.lines import Line2D

        look = mark.look(size, rim=self.pixels >= DENSE)
        groups = [[point] for point in points] if self.tips else [points]
        for group in groups:
            across, up = (
                [point.place for point in group],
                [self._inside(point.value) for point in group],
            )
            gid = tip(group[0].tip) if self.tips else None
            artist = Line2D(across, up, ls="none", gid=gid, clip_on=False, zorder=4, **look)
            self.axes.add_artist(artist)

    def join(self, lines: Sequence[Line], colour: str, widest: float) -> None:
        """Draw upright lines below the marks."""
        faint = self.pixels < DENSE and colour == "muted"
        paint = COLOURS.get("whisker" if faint else colour, colour)
        self._strokes(lines, paint, min(widest, max(0.35, 0.3 * self.pixels)), "butt", 3)

    def _strokes(
        self, lines: Sequence[Line], paint: str, width: float, cap: str, zorder: int
    ) -> None:
        """Draw upright lines as one path."""
        across = [place for line in lines for place in (line.place, line.place, math.nan)]
        up = [
            end
            for line in lines
            for end in (self._inside(line.low), self._inside(line.high), math.nan)
        ]
        self.axes.plot(
            across, up, color=paint, lw=width, solid_capstyle=cap, clip_on=False, zorder=zorder
        )

    def _inside(self, value: float) -> float:
        low, high = self.axes.get_ylim()
        return min(max(value, low), high)


def draw(
    name: str,
    label: str,
    layers: Sequence[str],
    marks: Sequence[Marks],
    strokes: Sequence[Strokes] = (),
) -> Plot:
    """A plot of factors, with a legend of what is in it; strokes lie below, later marks above."""
    from matplotlib.figure import Figure

    values = [point.value for series in marks for point in series.points]
    values += [end for stroke in strokes for line in stroke.lines for end in line[1:]]
    drawn = []
    for (width, height), word in ((WIDE, "wide"), (NARROW, "narrow")):
        figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS, facecolor="none")
        inner = width - LEFT - RIGHT, height - TOP - BOTTOM
        box = LEFT / width, BOTTOM / height, inner[0] / width, inner[1] / height
        axes = figure.add_axes(box, facecolor="none", frame_on=False)
        draw_factors(axes, values)
        draw_layers(axes, layers, inner[0])
        # Tooltips need a pointer, which narrow screens seldom have.
        sheet = Sheet(axes, inner[0] / len(layers), tips=word == "wide")
        for lines, colour, widest, _ in strokes:
            sheet.join(lines, colour, widest)
        for mark, points, scale in marks:
            sheet.put(mark, points, scale=scale)
        drawn.append(inline(figure, f"{name}-{word}", label))
    legend = tuple(series.mark for series in marks if series.points)
    meanings = tuple(
        (stroke.colour, stroke.meaning) for stroke in strokes if stroke.lines and stroke.meaning
    )
    return Plot(drawn[0], drawn[1], legend, meanings)


def expert_marks(names: tuple[str, ...]) -> tuple[Mark, ...]:
    """One mark for each expert; more experts than shapes share one, and tooltips name them."""
    if len(names) > len(EXPERT_SHAPES):
        return tuple(Mark(name, "dash", "series-1") for name in names)
    return tuple(
        Mark(name, shape, f"series-{1 + place % 4}")
        for place, (name, shape) in enumerate(zip(names, EXPERT_SHAPES, strict=False))
    )
