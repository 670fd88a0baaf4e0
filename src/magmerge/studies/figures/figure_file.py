"""A figure's file: its chart as .svg, .png or .pdf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import OutputError, printable
from magmerge.core.whole_file import check_free, write_whole
from magmerge.report.svg import DOTS, drawing, svg_text
from magmerge.studies.figures.captions import title_of
from magmerge.studies.figures.document import Coefficients, Curves, Document, Ranking
from magmerge.studies.figures.panels import coefficient_chart, curve_chart, ranking_chart

if TYPE_CHECKING:
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
CHARTS: Mapping[type, Callable[[Any], Figure]] = {
    Curves: curve_chart,
    Coefficients: coefficient_chart,
    Ranking: ranking_chart,
}


def chart_of(document: Document) -> Figure:
    """The figure, drawn within `drawing(**SIZES)`; names in letters that the font has."""
    from matplotlib.text import Text

    figure: Figure = CHARTS[type(document)](document)
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
