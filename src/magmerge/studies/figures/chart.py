"""A sheet on white: title, key, empty panels and notes, laid out by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import printable
from magmerge.report.sheet import EXPERT_SHAPES, Mark
from magmerge.report.svg import COLOURS, DOTS
from magmerge.studies.figures.captions import axis_of, notes_of, subtitle_of, title_of
from magmerge.studies.figures.document import NONE, Document

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN, LINE = 16.0, 1.45
LETTER = 0.57
"""Width of a letter in heights, on average and rather more than less."""
LOOKS = {
    NONE: Mark(NONE, "diamond", "muted"),
    "wsc": Mark("WSC", "circle", "series-1"),
    "fsc": Mark("FSC", "square", "series-2"),
    "dsc": Mark("DSC", "up", "series-3"),
}
OTHERS = ("series-4", "#8a6d00", "#2f97cf")
"""Colours of calibrations of other names."""


def look_of(calibration: str, others: Sequence[str]) -> Mark:
    """The look of a line; `others` are all calibrations of the figure."""
    if calibration in LOOKS:
        return LOOKS[calibration]
    place = others.index(calibration)
    shape = EXPERT_SHAPES[(3 + place) % len(EXPERT_SHAPES)]
    return Mark(calibration, shape, OTHERS[place % len(OTHERS)])


def handle(mark: Mark, label: str, **more: Any) -> Artist:
    """A mark of the key."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"ls": "none", **mark.look(6.5), **more})


def open_chart(
    document: Document,
    titles: Sequence[str],
    columns: int,
    size: tuple[float, float],
    key: Sequence[Artist],
) -> tuple[Figure, list[Axes]]:
    """A sheet with all but what is in the panels, which are empty axes in rows of `columns`.

    `size` in points: the sheet's width, and a panel's height with all that belongs to it.
    """
    from matplotlib.figure import Figure

    width, each = size
    rows = -(-len(titles) // columns)
    head = [(line, 14.0, "ink", "bold") for line in _lines(title_of(document), 16, width)]
    head += [(line, 10.0, "muted", "normal") for line in _lines(subtitle_of(document), 10, width)]
    notes = _lines(notes_of(document), 9, width)
    entry = max((len(str(mark.get_label())) for mark in key), default=0) * LETTER * 9 + 40
    ncols = max(1, min(len(key), int((width - 2 * MARGIN) / entry)))
    above = MARGIN + LINE * sum(line[1] for line in head)
    top = above + 16.0 * -(-len(key) // ncols) + LINE * 9 + 14
    bottom = MARGIN + LINE * 9 * len(notes) + 6
    height = top + rows * each + bottom
    figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS, facecolor=COLOURS["paper"])
    left, inner = MARGIN / width, 1 - 2 * MARGIN / width
    rect = left, bottom / height, inner, 1 - (top + bottom) / height
    figure.set_layout_engine("constrained", rect=rect, w_pad=0.08)

    def write(y: float, text: str, points: float, colour: str, **look: Any) -> None:
        figure.text(left, y / height, text, size=points, color=COLOURS[colour], **look)

    y = height - MARGIN + 4
    for text, points, colour, weight in head:
        y -= LINE * points
        write(y, text, points, colour, weight=weight)
    write(height - top + 9, axis_of(document), 9, "ink")
    for place, line in enumerate(reversed(notes)):
        write(MARGIN + LINE * 9 * place, line, 9, "muted")
    if key:
        corner = (left, (height - above - 4) / height)
        legend = figure.legend(handles=key, ncols=ncols, loc="upper left", bbox_to_anchor=corner)
        legend.set_in_layout(False)
    return figure, _panels(figure, titles, columns)


def _panels(figure: Figure, titles: Sequence[str], columns: int) -> list[Axes]:
    """Empty axes below their titles."""
    rows = -(-len(titles) // columns)
    panels: list[Axes] = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_frame_on(False)
        axes.set_title(title, loc="left")
    for axes in panels[len(titles) :]:
        axes.remove()
    return panels[: len(titles)]


def _lines(text: str, size: float, width: float) -> list[str]:
    return wrap(printable(text), int((width - 2 * MARGIN) / (LETTER * size)))


def draw_even(axes: Axes, low: float, high: float) -> None:
    """The vertical axis from `low` to `high`, with a thin line at each round number."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="y", lw=0.8)
