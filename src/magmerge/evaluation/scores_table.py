"""The table of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from magmerge.core.errors import printable
from magmerge.evaluation.scores import LOWER_IS_BETTER
from magmerge.report.terminal_tables import plain, table

if TYPE_CHECKING:
    from magmerge.evaluation import Scores, TaskScore

PERCENT = frozenset({"accuracy", "f1", "acc", "acc_norm", "exact_match"})
"""Metrics that people read in percent."""
NUMBERS = ("rows", "score", "95 % interval", "expert", "of expert", "s")


def scores_table(scores: Scores) -> Table:
    """A row for each task, and the means; experts' columns only where an expert is known."""
    known = any(one.expert is not None for one in scores.tasks)
    columns = [name for name in NUMBERS if known or "expert" not in name]
    made = table("", "task", "metric", *columns, numbers=columns)
    made.title = None
    for one in scores.tasks:
        relative = [_spoken(one.metric, one.expert), _percent(one.relative)] if known else []
        made.add_row(
            _task(one),
            one.metric,
            str(one.count),
            plain(_spoken(one.metric, one.score), "bold"),
            plain(_interval(one), "dim"),
            *relative,
            f"{one.seconds:.1f}",
        )
    if len(scores.tasks) > 1:
        mean = "" if scores.mean is None else f"{100 * scores.mean:.1f}"
        relative = ["", _percent(scores.relative)] if known else []
        seconds = f"{sum(one.seconds for one in scores.tasks):.1f}"
        made.add_row(plain("mean", "bold"), "", "", plain(mean, "bold"), "", *relative, seconds)
    return made


def scores_heading(scores: Scores) -> Text:
    """Which model, and on what; not the table's title, which would be no wider than the table."""
    return plain(scores.model, "bold") + plain(f" on {_where(scores)}")


def comparison_table(scores: Sequence[Scores]) -> Table:
    """A row for each model, a column for each task, and the means; the best of a column is bold."""
    tasks = [(one.task, one.title, one.metric) for one in scores[0].tasks]
    several = len({task for task, _, _ in tasks}) < len(tasks)
    names = [f"{task} {metric}" if several else task for task, _, metric in tasks]
    means = ["mean"] if len(tasks) > 1 else []
    made = table(
        "", "model", *(printable(name) for name in (*names, *means)), numbers=names + means
    )
    made.title = None
    columns = [[_score_of(one, task, metric) for one in scores] for task, _, metric in tasks]
    best = [_best(values, metric) for values, (_, _, metric) in zip(columns, tasks, strict=True)]
    mean = [one.mean for one in scores]
    for row, one in enumerate(scores):
        cells = [
            plain(_spoken(metric, values[row]), "bold" if values[row] == top else "")
            for values, top, (_, _, metric) in zip(columns, best, tasks, strict=True)
        ]
        if means:
            top = _best(mean, "mean")
            text = "" if mean[row] is None else f"{100 * (mean[row] or 0):.1f}"
            cells.append(plain(text, "bold" if mean[row] == top else ""))
        made.add_row(plain(one.model), *cells)
    return made


def comparison_heading(scores: Sequence[Scores]) -> Text:
    """On what the models were measured, and on how many rows of each task."""
    counts = ", ".join(f"{one.task} {one.count}" for one in scores[0].tasks)
    heading = plain(f"{len(scores)} models on {_where(scores[0])}")
    return Text("\n").join([heading, plain(f"rows: {counts}", "dim")])


def scores_notes(scores: Scores) -> list[str]:
    """What a reader of the table must know."""
    metrics = {one.metric for one in scores.tasks}
    notes = []
    if metrics & PERCENT:
        notes.append(f"{' and '.join(sorted(metrics & PERCENT))} in %.")
    lower = sorted(metrics & LOWER_IS_BETTER)
    if lower:
        notes.append(f"{' and '.join(lower)}: the lower the better; not in the mean score.")
    if any(one.relative is not None for one in scores.tasks):
        notes.append("of expert: the score in % of the task's own expert's; above 100 is better.")
    return notes


def _where(scores: Scores) -> str:
    return f"the {scores.split} split of {scores.suite}" if scores.split else scores.suite


def _score_of(scores: Scores, task: str, metric: str) -> float | None:
    known = {(one.task, one.metric): one.score for one in scores.tasks}
    return known.get((task, metric))


def _best(values: Sequence[float | None], metric: str) -> float | None:
    there = [value for value in values if value is not None]
    best = min if metric in LOWER_IS_BETTER else max
    return best(there) if len(there) > 1 else None


def _interval(one: TaskScore) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{_spoken(one.metric, one.low)} to {_spoken(one.metric, one.high)}"


def _task(one: TaskScore) -> Text:
    return plain(one.task) if one.title == one.task else plain(f"{one.title} ({one.task})")


def _spoken(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
