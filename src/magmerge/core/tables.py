"""Results as tables: in a notebook, as text, for pandas, as CSV and as LaTeX for a paper."""

from __future__ import annotations

import csv
import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.core.errors import printable
from magmerge.core.extras import needed
from magmerge.core.whole_file import check_free, write_whole

SHOWN = 12
"""Rows of a table that text and notebooks show; pandas, CSV and LaTeX have all."""
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)  # fmt: skip
STYLE = "text-align: right; font-variant-numeric: tabular-nums"


class Spread(NamedTuple):
    """A number over several runs: mean and standard deviation, None for the latter of one run."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)


Cell = str | int | float | Spread | None
Write = Callable[[str], str]
"""From a cell's text to what stands in a file."""


@dataclass(frozen=True, slots=True)
class Table:
    """A title, columns, and rows of cells, the first of which names the row.

    `rising` tells of columns that rank rows whether more is better; their best is in bold.
    `decimals` are those of numbers in text, HTML and LaTeX.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    rising: Mapping[str, bool] = field(default_factory=dict)
    decimals: int = 3

    def to_pandas(self) -> Any:
        """A DataFrame; a spread is two columns, the second with `sd` in its name."""
        pandas = needed("pandas", "a DataFrame", "use to_csv()")
        columns, rows = self._flat()
        return pandas.DataFrame(rows, columns=columns)

    def to_csv(self, path: str | Path | None = None, *, overwrite: bool = False) -> str:
        """CSV with every digit, which is written to `path` too where one is given; OutputError
        where that exists.
        """
        columns, rows = self._flat()
        file = StringIO()
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        return _kept(file.getvalue(), path, overwrite=overwrite)

    def to_latex(
        self,
        path: str | Path | None = None,
        *,
        caption: str | None = None,
        label: str | None = None,
        overwrite: bool = False,
    ) -> str:
        """A tabular for the package booktabs, the best of each ranking column in bold; within a
        table where there is a caption or a label.
        """

        def bold(text: str) -> str:
            return f"\\textbf{{{text}}}"

        def write(text: str) -> str:
            return printable(text).translate(LATEX).replace("±", r"$\pm$")

        body = [" & ".join(row) + r" \\" for row in self._texts(write, bold)]
        head = " & ".join(map(write, self.columns)) + r" \\"
        lines = [f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}", r"\toprule", head]
        lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
        if caption is not None or label is not None:
            told = [] if caption is None else [f"\\caption{{{write(caption)}}}"]
            told += [] if label is None else [f"\\label{{{label}}}"]
            lines = [r"\begin{table}", r"\centering", *told, *lines, r"\end{table}"]
        return _kept("\n".join(lines) + "\n", path, overwrite=overwrite)

    def __str__(self) -> str:
        shown = [self.columns, *self._texts(str, str)[:SHOWN]]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in shown
        ]
        return printable_lines_of([self.title, *lines, *self._more("to_pandas() has all")])

    def _repr_html_(self) -> str:
        def bold(text: str) -> str:
            return f"<strong>{text}</strong>"

        def write(text: str) -> str:
            return html.escape(printable(text))

        head = "".join(
            f'<th scope="col"{"" if place == 0 else f" style={STYLE!r}"}>{write(name)}</th>'
            for place, name in enumerate(self.columns)
        )
        body = "".join(
            f'<tr><th scope="row" style="text-align: left">{row[0]}</th>'
            + "".join(f"<td style={STYLE!r}>{cell}</td>" for cell in row[1:])
            + "</tr>"
            for row in self._texts(write, bold)[:SHOWN]
        )
        more = "".join(f"<p>{write(text)}</p>" for text in self._more(".to_pandas() has all"))
        return (
            f"<table><caption>{write(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{more}"
        )

    def _more(self, where: str) -> list[str]:
        left = len(self.rows) - SHOWN
        return [f"and {left} row{'' if left == 1 else 's'} more: {where}"] if left > 0 else []

    def _texts(self, write: Write, bold: Write) -> list[list[str]]:
        """Every row as texts; the best of each ranking column in bold."""
        best = {
            place: self._best(place)
            for place, name in enumerate(self.columns)
            if name in self.rising
        }
        return [
            [
                bold(write(text)) if text and text == best.get(place) else write(text)
                for place, text in enumerate(self._text(cell) for cell in row)
            ]
            for row in self.rows
        ]

    def _best(self, place: int) -> str | None:
        """The text of a column's best cell; None where it has no two numbers."""
        known = [row[place] for row in self.rows]
        numbers = [(value, cell) for cell in known if (value := _value(cell)) is not None]
        if len(numbers) < 2:
            return None
        choose = max if self.rising[self.columns[place]] else min
        return self._text(choose(numbers, key=lambda one: one[0])[1])

    def _text(self, cell: Cell) -> str:
        if isinstance(cell, Spread):
            spread = "" if cell.deviation is None else f" ± {cell.deviation:.{self.decimals}f}"
            return f"{cell.mean:.{self.decimals}f}{spread}"
        if isinstance(cell, float):
            small = 0 < abs(cell) < 10.0**-self.decimals
            return f"{cell:.{self.decimals}g}" if small else f"{cell:.{self.decimals}f}"
        return "" if cell is None else str(cell)

    def _flat(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows with a spread's two numbers apart."""
        wide = [any(isinstance(row[n], Spread) for row in self.rows) for n in range(self.width)]
        columns = [
            name
            for own, column in zip(wide, self.columns, strict=True)
            for name in ((column, f"{column} sd") if own else (column,))
        ]
        rows = [
            [
                value
                for own, cell in zip(wide, row, strict=True)
                for value in (_both(cell) if own else (cell,))
            ]
            for row in self.rows
        ]
        return columns, rows

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self.columns)


def printable_lines_of(lines: Sequence[str]) -> str:
    """Lines without control characters, one under the other."""
    return "\n".join(map(printable, lines))


def _both(cell: Cell) -> tuple[Cell, Cell]:
    return (cell.mean, cell.deviation) if isinstance(cell, Spread) else (cell, None)


def _value(cell: Cell) -> float | None:
    value = cell.mean if isinstance(cell, Spread) else cell
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _kept(text: str, path: str | Path | None, *, overwrite: bool) -> str:
    if path is not None:
        check_free(Path(path), overwrite=overwrite)
        write_whole(Path(path), text)
    return text
