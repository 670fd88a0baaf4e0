"""Evaluations and named suites as tables of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from magmerge.core.errors import printable
from magmerge.evaluation.scores import LOWER_IS_BETTER, Scores, TaskScore
from magmerge.evaluation.suites import NamedSuite
from magmerge.report.terminal_tables import plain, table

PERCENT = frozenset({"accuracy", "f1", "acc", "acc_norm", "exact_match"})
"""Metrics that people read in percent."""
MEAN = "accuracy"
"""A mean is told as this metric is."""
NUMBERS = ("rows", "score", "95 % interval", "expert", "of expert", "s")


def scores_table(scores: Scores) -> Table:
    """A row for each task, and the means; experts' columns only where an expert is known."""
    known = any(task.expert is not None for task in scores.tasks)
    columns = [name for name in NUMBERS if known or "expert" not in name]
    grid = table("", "task", "metric", *columns, numbers=columns)
    grid.title = None
    for task in scores.tasks:
        relative = [_spoken(task.metric, task.expert), _percent(task.relative)] if known else []
        grid.add_row(
            _task(task),
            task.metric,
            str(task.count),
            plain(_spoken(task.metric, task.score), "bold"),
            plain(_interval(task), "dim"),
            *relative,
            f"{task.seconds:.1f}",
        )
    if len(scores.tasks) > 1:
        mean = _spoken(MEAN, scores.mean)
        relative = ["", _percent(scores.relative)] if known else []
        seconds = f"{sum(task.seconds for task in scores.tasks):.1f}"
        grid.add_row(plain("mean", "bold"), "", "", plain(mean, "bold"), "", *relative, seconds)
    return grid


def scores_heading(scores: Scores) -> Text:
    """Which model, and on what; not the table's title, which would be no wider than the table."""
    return plain(scores.model, "bold") + plain(f" on {_where(scores)}")


def comparison_table(scores: Sequence[Scores]) -> Table:
    """A row for each model, a column for each task, and the means; the best of a column is bold."""
    tasks = scores[0].tasks
    repeated = len({task.task for task in tasks}) < len(tasks)
    names = [printable(f"{task.task} {task.metric}" if repeated else task.task) for task in tasks]
    columns = [(task.metric, [_score_of(model, task) for model in scores]) for task in tasks]
    if len(tasks) > 1:
        names.append("mean")
        columns.append((MEAN, [model.mean for model in scores]))
    grid = table("", "model", *names, numbers=names)
    grid.title = None
    best = [_best(values, metric) for metric, values in columns]
    for row, model in enumerate(scores):
        cells = [
            plain(_spoken(metric, values[row]), "bold" if values[row] == top else "")
            for (metric, values), top in zip(columns, best, strict=True)
        ]
        grid.add_row(plain(model.model), *cells)
    return grid


def comparison_heading(scores: Sequence[Scores]) -> Text:
    """On what the models were measured, and on how many rows of each task."""
    counts = ", ".join(f"{task.task} {task.count}" for task in scores[0].tasks)
    heading = plain(f"{len(scores)} models on {_where(scores[0])}")
    return Text("\n").join([heading, plain(f"rows: {counts}", "dim")])


def scores_notes(scores: Scores) -> list[str]:
    """What a reader of the table must know."""
    metrics = {task.metric for task in scores.tasks}
    notes = []
    if metrics & PERCENT:
        notes.append(f"{' and '.join(sorted(metrics & PERCENT))} in %.")
    lower = sorted(metrics & LOWER_IS_BETTER)
    if lower:
        notes.append(f"{' and '.join(lower)}: the lower the better; not in the mean score.")
    if any(task.relative is not None for task in scores.tasks):
        notes.append("of expert: the score in % of the task's own expert's; above 100 is better.")
    return notes


def _where(scores: Scores) -> str:
    return f"the {scores.split} split of {scores.suite}" if scores.split else scores.suite


def _score_of(scores: Scores, task: TaskScore) -> float | None:
    known = {(row.task, row.metric): row.score for row in scores.tasks}
    return known.get((task.task, task.metric))


def _best(values: Sequence[float | None], metric: str) -> float | None:
    there = [value for value in values if value is not None]
    best = min if metric in LOWER_IS_BETTER else max
    return best(there) if len(there) > 1 else None


def _interval(task: TaskScore) -> str:
    if task.low is None or task.high is None:
        return ""
    return f"{_spoken(task.metric, task.low)} to {_spoken(task.metric, task.high)}"


def _task(task: TaskScore) -> Text:
    return plain(task.task) if task.title == task.task else plain(f"{task.title} ({task.task})")


def _spoken(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def suite_table(suite: NamedSuite) -> Table:
    """A row for each entry of a suite that was written, with where its test data is."""
    grid = table(f"suite {suite.name}", "task", "metric", "classes", "data", numbers=["classes"])
    for task in suite.tasks:
        title, origin = plain(f"{task.title} ({task.name})"), plain(task.origin)
        grid.add_row(title, task.metric, str(task.classes or ""), origin)
    return grid


def suites_table(entries: Sequence[dict[str, Any]]) -> Table:
    """Every named suite: its kind, and its tasks with their numbers of classes."""
    grid = table("named suites", "suite", "kind", "tasks (classes)")
    for entry in entries:
        tasks = ", ".join(
            f"{task['task']} ({task['classes']})" if task["classes"] else task["task"]
            for task in entry["tasks"]
        )
        grid.add_row(plain(entry["suite"], "bold"), entry["kind"], plain(tasks))
    return grid
