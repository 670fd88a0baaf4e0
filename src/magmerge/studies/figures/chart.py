"""A figure on white: title, key, panels and notes, laid out by matplotlib, and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import OutputError, printable
from magmerge.core.whole_file import check_free, write_whole
from magmerge.report.sheet import EXPERT_SHAPES, Mark
from magmerge.report.svg import COLOURS, DOTS, drawing, svg_text
from magmerge.studies.figures.captions import axis_of, notes_of, subtitle_of, title_of
from magmerge.studies.figures.document import NONE, Coefficients, Curves, Document

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Mapping[str, dict[str, Any]] = {
    ".svg": {},
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""What is left out of each, so that the same numbers give the same bytes."""
FINE = 200
"""Dots to an inch of a PNG."""
SIZES = {
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize", "axes.labelsize"), 9),
    **{"legend.frameon": False, "legend.borderpad": 0, "legend.borderaxespad": 0},
    **{"axes.facecolor": "none", "axes.titlesize": 10, "axes.titleweight": "bold"},
}
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
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_frame_on(False)
        axes.set_title(title, loc="left")
    for axes in panels[len(titles) :]:
        axes.remove()
    return figure, panels[: len(titles)]


def _lines(text: str, size: float, width: float) -> list[str]:
    return wrap(printable(text), int((width - 2 * MARGIN) / (LETTER * size)))


def draw_even(axes: Axes, low: float, high: float) -> None:
    """The vertical axis from `low` to `high`, with a thin line at each round number."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="y", lw=0.8)


def chart_of(document: Document) -> Figure:
    """The figure, drawn within `drawing(**SIZES)`; names in letters that the font has."""
    from matplotlib.text import Text

    from magmerge.studies.figures.panels import coefficient_chart, curve_chart, ranking_chart

    if isinstance(document, Curves):
        figure = curve_chart(document)
    elif isinstance(document, Coefficients):
        figure = coefficient_chart(document)
    else:
        figure = ranking_chart(document)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():
            letters = printable(text.get_text())
            text.set_text("".join(c if ord(c) in _letters() else "?" for c in letters))
    return figure


@cache
def _letters() -> frozenset[int]:
    """The letters that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def check_figure(path: Path, *, overwrite: bool) -> None:
    """OutputError or MissingExtraError, before any work, where no figure could be written."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            "a figure ends in .svg, .png or .pdf",
            source=path,
            remedy=f"name it like {path.stem or 'figure'}.svg",
        )
    check_free(path, overwrite=overwrite)
    with drawing():
        pass


def draw(document: Document, path: Path) -> None:
    """Write the figure as .svg, .png or .pdf; the same numbers give the same bytes."""
    kind = path.suffix.lower()
    with drawing(**SIZES):
        figure = chart_of(document)
        if kind == ".svg":
            write_whole(path, svg_text(figure, title_of(document)))
            return
        raw = BytesIO()
        dots = FINE if kind == ".png" else DOTS
        figure.savefig(raw, format=kind[1:], dpi=dots, metadata=FORMATS[kind])
    write_whole(path, raw.getvalue())
