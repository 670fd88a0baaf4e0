"""How near models come to the experts of a suite, without labels, as tables of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from magmerge.core.errors import printable
from magmerge.evaluation.scores import Scores, TaskNearness
from magmerge.report.terminal_tables import plain, table

FIELDS = ("error", "cosine", "norm_ratio", "kl", "agreement")
HEADINGS = ("feature error", "cosine", "norm ratio", "KL", "agree %")


def nearness_table(scores: Sequence[Scores]) -> Table:
    """A row for each task of one model, or for each of several models, and one for the base."""
    single = len(scores) == 1
    grid = table("near the experts, without labels", "task" if single else "model", *HEADINGS,
                 numbers=HEADINGS)  # fmt: skip
    tasks = scores[0].nearness
    if single:
        for task in tasks:
            grid.add_row(plain(printable(task.task)), *_cells([task]))
    for row in scores:
        name = plain("mean", "bold") if single else plain(row.model)
        grid.add_row(name, *_cells(row.nearness))
    base = [("error", 1.0), ("norm_ratio", 0.0)]
    told = {name: _spoken(name, value) for name, value in base}
    told["kl"] = _spoken("kl", mean_of(tasks, "base_kl"))
    told["agreement"] = _spoken("agreement", mean_of(tasks, "base_agreement"))
    grid.add_row(plain("the base", "dim"), *(plain(told.get(name, ""), "dim") for name in FIELDS))
    return grid


def nearness_notes(scores: Sequence[Scores]) -> list[str]:
    """On which rows, and how to read the table."""
    tasks = scores[0].nearness
    counts = ", ".join(f"{task.task} {task.count} of {task.split}" for task in tasks)
    return [
        f"unlabelled rows: {counts}.",
        "the expert has error 0, cosine 1, ratio 1, KL 0, 100 % on its own task. Compare models "
        "with each other and with the base: no single value is good or bad by itself.",
    ]


def mean_of(tasks: Sequence[TaskNearness], name: str) -> float | None:
    """The mean of a measure over the tasks that have it."""
    values = [value for task in tasks if (value := getattr(task, name)) is not None]
    return sum(values) / len(values) if values else None


def _cells(tasks: Sequence[TaskNearness]) -> list[str]:
    return [_spoken(name, mean_of(tasks, name)) for name in FIELDS]


def _spoken(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if name == "agreement" else f"{value:.3f}"
