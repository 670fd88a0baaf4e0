"""A white sheet for one figure: title, notes, a key and panels, laid out in points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magmerge.errors import MissingExtraError, OutputError, printable
from magmerge.figures.palette import INK, MUTED, PAPER, RULE, Look
from magmerge.report import svg
from magmerge.report.marks import SHAPES, reach
from magmerge.whole_file import check_free

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
INCH = 72
"""Points to an inch."""
FINE = 200
"""Dots to an inch of a PNG."""
FONTS = ["DejaVu Sans", "Verdana", "Liberation Sans", "Arial", "sans-serif"]
SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": FONTS[:-1],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "pdf.fonttype": 42,
}
UNDATED: Mapping[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""The same numbers give the same bytes."""
TITLE, TEXT, SMALL = 14.0, 10.0, 9.0
MARGIN, LINE = 16.0, 1.45
SURE = 0.97
"""Part of a line that is filled: another program's letters may be a little wider."""
NAMED = 18.0
"""Points for the name of the horizontal axis."""
LONGEST = 60
"""Letters of a name from a file that are shown."""


def check_figure(path: Path, *, overwrite: bool) -> None:
    """OutputError or MissingExtraError, before any work, where no figure could be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"a figure ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}",
            source=path,
            remedy=f"name it like {path.stem or 'figure'}.svg",
        )
    check_free(path, overwrite=overwrite)
    with drawing():
        pass


@contextmanager
def drawing() -> Iterator[None]:
    """A figure's own settings of matplotlib; MissingExtraError where it is not there."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            "a figure needs matplotlib", remedy="pip install 'magmerge[report]'"
        ) from error
    with svg.drawing():
        mpl.rcParams.update(SETTINGS)
        yield


@cache
def _letters() -> frozenset[int]:
    """The letters that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONTS[0]))).get_charmap())


def legible(text: str) -> str:
    """The text in letters that the font has."""
    known = _letters()
    return "".join(c if ord(c) in known else "?" for c in printable(text))


def shown(text: str, longest: int = LONGEST) -> str:
    """A name from a file in letters that the font has, and not too many of them."""
    letters = legible(text)
    return letters if len(letters) <= longest else f"{letters[: longest - 3]}..."


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """In points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    weight = "bold" if bold else "normal"
    font = FontProperties(family=FONTS[0], size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def wrapped(text: str, size: float, width: float, *, bold: bool = False) -> list[str]:
    """The text in lines of at most `width` points; a longer word stands alone."""
    lines: list[str] = []
    for word in legible(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points from the sheet's lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Text:
    """What stands around the panels. `key` tells marks from each other: meaning, look, filled."""

    title: str
    subtitle: str
    notes: Sequence[str]
    axis: str
    key: Sequence[tuple[str, Look, bool]] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Panels in rows and columns, the points around each, and the title of each.

    `below` is for the ticks' labels; the lowest panels have a line more, which names the axis.
    """

    columns: int
    titles: Sequence[str]
    height: float
    left: float
    right: float
    below: float

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return -(-len(self.titles) // self.columns)

    @property
    def above(self) -> float:
        """Room for a panel's title."""
        return 24.0 if any(self.titles) else 6.0


@dataclass(slots=True)
class Canvas:
    """A sheet that is being drawn on. `tips`: what each mark of the artist of a gid stands for."""

    figure: Figure
    width: float
    height: float
    panels: list[tuple[Axes, Box]] = field(default_factory=list)
    tips: dict[str, list[str]] = field(default_factory=dict)

    def write(self, x: float, y: float, text: str, size: float, colour: str, **more: Any) -> None:
        """A line of text whose baseline begins at (x, y)."""
        self.figure.text(
            x / self.width, y / self.height, legible(text), size=size, color=colour,
            **{"va": "baseline", **more},
        )  # fmt: skip

    def line(self, xs: Sequence[float], ys: Sequence[float], **look: Any) -> None:
        """A line, or marks, anywhere on the sheet."""
        from matplotlib.lines import Line2D

        across, up = [x / self.width for x in xs], [y / self.height for y in ys]
        self.figure.add_artist(Line2D(across, up, transform=self.figure.transFigure, **look))

    def mark(self, x: float, y: float, look: Look, *, filled: bool, size: float = 6.5) -> None:
        """One mark of the key."""
        self.line([x], [y], ls="none", **marker(look, size, filled=filled))


def marker(look: Look, size: float, *, filled: bool = True) -> dict[str, Any]:
    """matplotlib's words for a mark of `size` points."""
    from matplotlib.path import Path as Outline

    corners = SHAPES[look.shape]
    return {
        "marker": Outline([*corners, corners[0]], closed=True),
        "ms": size * reach(look.shape),
        "mfc": look.colour if filled else PAPER,
        "mec": PAPER if filled else look.colour,
        "mew": min(0.7, size / 10) if filled else 1.2,
    }


def open_canvas(text: Text, grid: Grid, width: float) -> Canvas:
    """A sheet with everything but what is in the panels, which are empty axes."""
    from matplotlib.figure import Figure

    inner = SURE * (width - 2 * MARGIN)
    title = wrapped(text.title, TITLE, inner, bold=True)
    subtitle = wrapped(text.subtitle, TEXT, inner)
    notes = wrapped(" ".join(text.notes), SMALL, inner)
    key = _rows_of_key(text.key, inner)
    top = MARGIN + LINE * (TITLE * len(title) + TEXT * len(subtitle) + 17 * bool(key) / LINE)
    top += 17 * max(0, len(key) - 1) + LINE * SMALL + 8
    body = grid.rows * (grid.height + grid.above + grid.below) + NAMED
    height = top + body + LINE * SMALL * len(notes) + MARGIN + 4
    figure = Figure(figsize=(width / INCH, height / INCH), dpi=INCH, facecolor=PAPER)
    canvas = Canvas(figure, width, height)
    y = height - MARGIN
    for lines, size, colour, weight in (
        (title, TITLE, INK, "bold"),
        (subtitle, TEXT, MUTED, "normal"),
    ):
        for one in lines:
            y -= LINE * size
            canvas.write(MARGIN, y + 0.35 * size, one, size, colour, weight=weight)
    y = _write_key(canvas, key, y)
    y -= LINE * SMALL + 6
    canvas.write(MARGIN, y, text.axis, SMALL, INK)
    for number, name in enumerate(grid.titles):
        _add_panel(canvas, grid, number, name, height - top)
    for number, one in enumerate(notes, 1):
        y = MARGIN + (len(notes) - number) * LINE * SMALL
        canvas.write(MARGIN, y, one, SMALL, MUTED)
    return canvas


def _rows_of_key(
    key: Sequence[tuple[str, Look, bool]], width: float
) -> list[list[tuple[str, Look, bool, float]]]:
    """The entries in rows that fit, each with the room that it takes."""
    rows: list[list[tuple[str, Look, bool, float]]] = []
    used = width
    for words, look, filled in key:
        meaning = shown(words, 40)
        room = 14 + width_of(meaning, SMALL) + 18
        if used + room - 18 > width:
            rows.append([])
            used = 0.0
        rows[-1].append((meaning, look, filled, room))
        used += room
    return rows


def _write_key(
    canvas: Canvas, key: Sequence[Sequence[tuple[str, Look, bool, float]]], y: float
) -> float:
    for row in key:
        y -= 17
        x = MARGIN
        for meaning, look, filled, room in row:
            canvas.mark(x + 4, y + 3.2, look, filled=filled)
            canvas.write(x + 14, y, meaning, SMALL, INK)
            x += room
    return y


def _add_panel(canvas: Canvas, grid: Grid, number: int, name: str, top: float) -> None:
    row, column = divmod(number, grid.columns)
    each = (canvas.width - 2 * MARGIN) / grid.columns
    left = MARGIN + column * each + grid.left
    above = top - row * (grid.height + grid.above + grid.below)
    box = Box(left, above - grid.above - grid.height, each - grid.left - grid.right, grid.height)
    place = (
        box.left / canvas.width,
        box.bottom / canvas.height,
        box.width / canvas.width,
        box.height / canvas.height,
    )
    axes = canvas.figure.add_axes(place, facecolor="none", frame_on=False)
    if name:
        canvas.write(box.left, box.bottom + box.height + 8, name, TEXT, INK, weight="bold")
    canvas.panels.append((axes, box))
