"""The demo's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from magmerge.report.tables import plain, table

if TYPE_CHECKING:
    from magmerge.demonstration import Demo


GATED = 0.005
"""Difference of mean factors from which on the gate is worth a note."""


def demo_table(demo: Demo) -> Table:
    """Rows of models, columns of tasks and their average, in percent of the test texts."""
    columns = [*demo.tasks, "average", "mean xi"]
    title = f"accuracy in %, {min(demo.sizes)} to {max(demo.sizes)} test texts a task"
    if min(demo.sizes) == max(demo.sizes):
        title = f"accuracy in %, {min(demo.sizes)} test texts a task"
    made = table(title, "model", *columns, numbers=columns)
    for row in demo.rows:
        cells = [f"{100 * accuracy:.1f}" for accuracy in row.accuracies]
        style = "bold" if " + " in row.model else ""
        average = plain(f"{100 * row.average:.1f}", "bold")
        xi = "" if row.xi is None else f"{row.xi:.2f}"
        made.add_row(plain(row.model, style), *cells, average, xi)
    return made


def demo_notes(demo: Demo) -> list[str]:
    """What a reader of the table must know."""
    notes = ["Each expert is measured on its own task only. Methods at their defaults."]
    notes += [
        f"{row.model}: the gate holds back rows that would shrink; without it the mean xi would "
        f"be {row.xi_free:.2f}."
        for row in demo.rows
        if row.xi is not None and row.xi_free is not None and row.xi - row.xi_free > GATED
    ]
    return notes
