"""Named suites as tables of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from magmerge.evaluation.suites import NamedSuite
from magmerge.report.terminal_tables import plain, table


def suite_table(found: NamedSuite) -> Table:
    """A row for each entry of a suite that was written, with where its test data is."""
    made = table(f"suite {found.name}", "task", "metric", "classes", "data", numbers=["classes"])
    for one in found.tasks:
        made.add_row(
            plain(f"{one.title} ({one.name})"),
            one.metric,
            str(one.classes or ""),
            plain(one.origin),
        )
    return made


def suites_table(entries: Sequence[dict[str, Any]]) -> Table:
    """Every named suite: its kind, and its tasks with their numbers of classes."""
    made = table("named suites", "suite", "kind", "tasks (classes)")
    for entry in entries:
        tasks = ", ".join(
            f"{one['task']} ({one['classes']})" if one["classes"] else one["task"]
            for one in entry["tasks"]
        )
        made.add_row(plain(entry["suite"], "bold"), entry["kind"], plain(tasks))
    return made
