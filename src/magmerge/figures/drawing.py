"""From a figure's numbers to its file."""

from __future__ import annotations

from pathlib import Path

from magmerge.figures.canvas import drawing
from magmerge.figures.curve_chart import curve_chart
from magmerge.figures.document import Coefficients, Curves, Document
from magmerge.figures.layer_chart import coefficient_chart, ranking_chart
from magmerge.figures.saving import save
from magmerge.figures.wording import title_of


def draw(document: Document, path: Path) -> None:
    """Write the figure as .svg, .png or .pdf; the same numbers give the same bytes."""
    with drawing():
        if isinstance(document, Curves):
            canvas = curve_chart(document)
        elif isinstance(document, Coefficients):
            canvas = coefficient_chart(document)
        else:
            canvas = ranking_chart(document)
        save(canvas, path, title_of(document))
