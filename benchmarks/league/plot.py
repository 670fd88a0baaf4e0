"""The plot of one suite: accuracy against rows, between the base and the experts."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.league import figures
from benchmarks.league.cells import BUDGETS, STAGES, STARTS, STRONGEST, Cell
from benchmarks.league.results import Book
from magmerge.report.svg import COLOURS, drawing

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
"""Colours that are told apart by most colour-blind people (Okabe and Ito; the yellow is darker)."""
STYLES = {"tsv_m": ("-", "o"), "average": ("--", "s"), "ties": (":", "^")}
LIMITS = {"experts": Cell("experts"), "tuned average": figures.LEAST, "base": Cell("base")}


def curve(book: Book, merge: str, calibration: str) -> list[tuple[int, float]]:
    """Places on the axis and accuracies of one recipe; at none of rows what comes before it."""
    before = STAGES[calibration][:-1]
    start = Cell(merge, before[-1] if before else "none")
    cells = [start, *(Cell(merge, calibration, budget) for budget in BUDGETS[1:])]
    scores = [figures.score(book, cell) for cell in cells]
    found = [(place, score) for place, score in enumerate(scores) if score is not None]
    return found if any(place for place, _ in found) else []


def draw(book: Book, path: Path) -> None:
    """Write the plot as PNG."""
    with drawing():
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        axes = figure.add_subplot()
        seen: list[str] = []
        starts: list[str] = []
        # Each line is thinner than the one below, so that equal ones show.
        for number, (colour, calibration) in enumerate(zip(PALETTE, STRONGEST, strict=True)):
            for merge in STARTS:
                points = curve(book, merge, calibration)
                if not points:
                    continue
                line, mark = STYLES[merge]
                x, y = zip(*points, strict=True)
                size = 10 - 1.2 * number
                axes.plot(x, y, line, marker=mark, color=colour, lw=size / 2, ms=size)
                seen.append(calibration)
                starts.append(merge)
        for name, cell in LIMITS.items():
            score = figures.score(book, cell)
            if score is not None:
                axes.axhline(score, color=COLOURS["muted"], lw=1, zorder=0)
                axes.annotate(
                    f"{name} {score:.1f}", (1, score), xycoords=("axes fraction", "data"),
                    xytext=(-4, 3), textcoords="offset points", ha="right",
                    color=COLOURS["muted"], fontsize=10,
                )  # fmt: skip
        axes.set_xticks(range(len(BUDGETS)), [str(budget) for budget in BUDGETS])
        axes.set_xlim(-0.15, len(BUDGETS) - 0.3)
        axes.set_xlabel("unlabelled rows a task")
        axes.set_ylabel("mean accuracy on test rows, %")
        axes.set_title(book.suite, loc="left")
        axes.grid(axis="y")
        hues = dict(zip(STRONGEST, PALETTE, strict=True))
        handles = [
            Line2D([], [], color=hues[name], lw=3, label=name) for name in dict.fromkeys(seen)
        ]
        handles += [
            Line2D([], [], color=COLOURS["ink"], ls=line, marker=mark, label=f"after {merge}")
            for merge, (line, mark) in STYLES.items()
            if merge in starts
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=10)
        figure.savefig(path, dpi=110)
