"""The demonstration as a table of a terminal."""

from __future__ import annotations

from rich.table import Table

from magmerge.report.terminal_tables import plain, table
from magmerge.studies.demo import Demo

GATED = 0.005
"""Difference of mean factors from which on the gate is worth a note."""


def demo_table(demo: Demo) -> Table:
    """Rows of models, columns of tasks and their average, in percent of the test texts."""
    columns = [*demo.tasks, "average", "xi"]
    title = f"accuracy in %, {min(demo.sizes)} to {max(demo.sizes)} test texts a task"
    if min(demo.sizes) == max(demo.sizes):
        title = f"accuracy in %, {min(demo.sizes)} test texts a task"
    grid = table(title, "model", *columns, numbers=columns)
    for row in demo.rows:
        cells = [f"{100 * accuracy:.1f}" for accuracy in row.accuracies]
        style = "bold" if " + " in row.model else ""
        average = plain(f"{100 * row.average:.1f}", "bold")
        xi = "" if row.xi is None else f"{row.xi:.2f}"
        # Under the row of its merge, so that the table fits 80 columns.
        name = f"  + {row.model.partition(' + ')[2]}" if row.xi is not None else row.model
        grid.add_row(plain(name, style), *cells, average, xi)
    return grid


def demo_notes(demo: Demo) -> list[str]:
    """What a reader of the table must know."""
    notes = [
        "Each expert is measured on its own task only. Methods are at their defaults.",
        "xi is the mean factor that the calibration puts on the merged task vectors.",
        f"wsc looks at weights only, fsc at {demo.samples} unlabelled texts a task, dsc at both.",
    ]
    notes += [
        f"{row.model}: the gate lets no row shrink; without it xi would be {row.xi_free:.2f}."
        for row in demo.rows
        if row.xi is not None and row.xi_free is not None and row.xi - row.xi_free > GATED
    ]
    return notes
