"""Write the tables of docs/league.md and its plots anew, from the files of results.

    .venv/bin/python -m benchmarks.league.page

Between `<!-- league NAME -->` and `<!-- /league -->` everything is replaced; the rest is prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.league import figures, plot
from benchmarks.league.cells import BUDGETS, CONTROLS, METHODS, STAGES, Cell
from benchmarks.league.results import RESULTS, Book
from benchmarks.suites.law import mean

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "league.md"
PICTURES = ROOT / "docs" / "figures"
SUITES = ("lora-text", "text", "vision-efficientnet", "vision-resnet")
PLACE = re.compile(r"(<!-- league ([\w-]+) -->\n).*?(<!-- /league -->)", re.DOTALL)
LISTED = 8


def books() -> list[Book]:
    """The suites of which anything is measured."""
    found = [Book(name) for name in SUITES if (RESULTS / f"league-{name}.jsonl").exists()]
    return [book for book in found if book.lines]


def with_limits(known: Sequence[Book]) -> list[Book]:
    """Those whose tuned average and experts are measured: they have a plot and a gap to close."""
    return [book for book in known if figures.closed(book, Cell("experts")) is not None]


def lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    parts = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in parts)


def cell_text(book: Book, cell: Cell) -> str:
    """A cell's accuracy and what it gains on its merge; empty where it is not measured."""
    own, plain = figures.known(book, cell), figures.known(book, Cell(cell.merge))
    if own is None:
        return ""
    text = f"{100 * mean(own):.1f}"
    if plain is not None and cell[1:3] != ("none", 0):
        text += f" ({figures.difference(own, plain).text})"
    draws = len(book.draws(cell))
    if draws > 1:
        low, high = figures.spread(book, cell)
        text += f", {draws} draws {low:.1f} to {high:.1f}"
    return text


def suite_table(book: Book) -> str:
    """All cells of a suite: merges and calibrations down, numbers of rows across."""
    limits = ", ".join(
        f"{name} {figures.score(book, cell):.1f}"
        for name, cell in (
            ("base", Cell("base")),
            ("tuned average", figures.LEAST),
            ("experts", Cell("experts")),
        )
        if book.draws(cell)
    )
    rows = []
    for merge in METHODS:
        for calibration in (*STAGES, *CONTROLS):
            texts = [cell_text(book, Cell(merge, calibration, budget)) for budget in BUDGETS]
            if any(texts):
                name = merge if calibration == "none" else f"{merge} + {calibration}"
                rows.append([f"`{name}`", *texts])
    return f"{limits}\n\n" + lines(["rows a task", *map(str, BUDGETS)], rows)


def bars_table(known: Sequence[Book]) -> str:
    """The recipes that close most of the gap at each number of rows, on all suites whose gap is
    known.
    """
    known = with_limits(known)
    parts = []
    for budget in BUDGETS:
        best = figures.ranking(known, budget)[:LISTED]
        for entry in best:
            name = entry.cell.merge
            if entry.cell.calibrate != "none":
                name += f" + {entry.cell.calibrate}"
            shares = [f"{share:.0f}" for share in entry.shares]
            parts.append([str(budget), f"`{name}`", f"**{entry.mean:.0f}**", *shares])
    return lines(["rows", "recipe", "mean", *(book.suite for book in known)], parts)


def magic_table(known: Sequence[Book]) -> str:
    """What FSC and DSC with their check did to each merge, the worst first."""
    found = sorted(figures.magic(known), key=lambda one: one.gain.points)
    rows = [
        [one.suite, f"`{one.cell.merge} + {one.cell.calibrate}`", str(one.cell.rows),
         str(one.draws), one.gain.text, "**lowered**" if one.lowered else ""]
        for one in found
    ]  # fmt: skip
    return lines(["suite", "calibrated", "rows", "draws", "points on the merge", ""], rows)


def count_table(known: Sequence[Book]) -> str:
    """How many cells are measured."""
    rows = []
    for book in known:
        cells = [cell for cell in book.lines if cell.merge in METHODS]
        budgets = [sum(cell.rows == budget for cell in cells) for budget in BUDGETS]
        seconds = sum(line.get("cpu_s", 0) for line in book.lines.values())
        texts = [str(count) for count in budgets]
        rows.append([book.suite, *texts, str(max(c.seed for c in cells) + 1), f"{seconds:.0f}"])
    header = ["suite", *(f"{budget} rows" for budget in BUDGETS), "draws", "CPU s of the merges"]
    return lines(header, rows)


def tables(known: Sequence[Book]) -> dict[str, str]:
    """All tables of the page by their names."""
    found = {"bars": bars_table(known), "magic": magic_table(known), "count": count_table(known)}
    return found | {book.suite: suite_table(book) for book in known}


def filled(text: str, known: Sequence[Book]) -> str:
    """The page with its tables made anew. KeyError where it asks for one that there is not."""
    made = tables(known)
    return PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]]}\n{place[3]}", text)


def main() -> None:
    """Write page and plots."""
    known = books()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), known), encoding="utf-8")
    for book in with_limits(known):
        plot.draw(book, PICTURES / f"league-{book.suite}.png")


if __name__ == "__main__":
    main()
