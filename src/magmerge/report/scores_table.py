"""The table of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from magmerge.report.tables import plain, table

if TYPE_CHECKING:
    from magmerge.evaluation import Scores, TaskScore

PERCENT = frozenset({"accuracy", "f1"})
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
            plain(f"{_spoken(one.metric, one.low)} to {_spoken(one.metric, one.high)}", "dim"),
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
    heading = plain(scores.model, "bold")
    return heading + plain(f" on the {scores.split} split of {scores.suite}")


def scores_notes(scores: Scores) -> list[str]:
    """What a reader of the table must know."""
    metrics = {one.metric for one in scores.tasks}
    notes = []
    if metrics & PERCENT:
        notes.append(f"{' and '.join(sorted(metrics & PERCENT))} in %.")
    if "perplexity" in metrics:
        notes.append("perplexity: the lower the better; it is not in the mean score.")
    if any(one.relative is not None for one in scores.tasks):
        notes.append("of expert: the score in % of the task's own expert's; above 100 is better.")
    return notes


def _task(one: TaskScore) -> Text:
    return plain(one.task) if one.title == one.task else plain(f"{one.title} ({one.task})")


def _spoken(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
