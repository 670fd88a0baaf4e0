"""Accuracy tables of the report: what evaluations found, a column for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from magmerge.report.account import FilePart, Number, parse
from magmerge.report.sentences import ABSENT, short

SOURCE = "scores"
UNBOUNDED = frozenset({"perplexity", "loss"})
"""Metrics that are no fraction of one."""


class TaskResult(FilePart):
    """One model's score on one task, with its 95 % interval; see `magmerge evaluate --json`."""

    task: str
    title: str = ""
    metric: str = ""
    score: Number = None
    low: Number = None
    high: Number = None
    count: int | None = None
    expert: Number = None
    relative: Number = None


class MeanScore(FilePart):
    """The mean over the tasks."""

    score: Number = None
    relative: Number = None


class Evaluation(FilePart):
    """One model on one suite."""

    suite: str
    split: str = ""
    model: str
    tasks: tuple[TaskResult, ...]
    mean: MeanScore | None = None


class PlainTable(FilePart):
    """A table that somebody else has laid out; numbers are shown to four digits."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    caption: str = ""


class TableCell(NamedTuple):
    """A score, and in smaller print what belongs to it."""

    text: str
    notes: tuple[str, ...] = ()


class Heading(NamedTuple):
    """A column's name, and the whole of it where it is shortened."""

    text: str
    whole: str


class ScoreTable(NamedTuple):
    """A table for the page; the first cell of each row is its name."""

    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[TableCell, ...], ...]


def score_tables(scores: Sequence[Mapping[str, Any]]) -> list[ScoreTable]:
    """One table for each suite and split, then the plain ones; CheckpointError for any other."""
    suites: dict[tuple[str, str], list[Evaluation]] = {}
    plain = []
    for entry in scores:
        if isinstance(entry, Mapping) and "columns" in entry:
            plain.append(_plain_table(parse(PlainTable, entry, SOURCE)))
        else:
            evaluation = parse(Evaluation, entry, SOURCE)
            suites.setdefault((evaluation.suite, evaluation.split), []).append(evaluation)
    return [_comparison(*key, evaluation) for key, evaluation in suites.items()] + plain


def _plain_table(table: PlainTable) -> ScoreTable:
    headings = tuple(Heading(short(name, 40), name) for name in table.columns)
    rows = [[f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in table.rows]
    cells = tuple(tuple(TableCell("" if x is None else str(x)) for x in row) for row in rows)
    return ScoreTable(table.caption, headings, cells)


def _comparison(suite: str, split: str, evaluations: Sequence[Evaluation]) -> ScoreTable:
    """Tasks as rows, models as columns, then their mean."""
    tasks: dict[str, TaskResult] = {}
    for evaluation in evaluations:
        for task in evaluation.tasks:
            tasks.setdefault(task.task, task)
    scores = [
        {task.task: task for task in reversed(evaluation.tasks)} for evaluation in evaluations
    ]
    rows = [
        (_name(task), *(_cell(own.get(name)) for own in scores)) for name, task in tasks.items()
    ]
    metrics = {task.metric for task in tasks.values()}
    if any(evaluation.mean for evaluation in evaluations):
        means = (_mean(evaluation.mean) for evaluation in evaluations)
        rows.append((TableCell("mean of the tasks"), *means))
    named = f"{short(suite)}{f', {short(split)} split' if split else ''}"
    units = [*(["in %"] if metrics - UNBOUNDED else []), *sorted(metrics & UNBOUNDED)]
    caption = f"{named}: scores ({', '.join(units)}) with 95 % intervals"
    headings = (Heading("task", "task"), *_models([evaluation.model for evaluation in evaluations]))
    return ScoreTable(caption, headings, tuple(rows))


def _models(models: Sequence[str]) -> list[Heading]:
    """The last parts of the models' paths where these tell them apart."""
    ends = [PurePath(model).name or model for model in models]
    names = ends if len(set(ends)) == len(set(models)) else models
    return [Heading(short(name, 40), whole) for name, whole in zip(names, models, strict=True)]


def _name(task: TaskResult) -> TableCell:
    count = "" if task.count is None else f", {task.count:,} samples"
    return TableCell(short(task.title or task.task), (f"{short(task.metric)}{count}".lstrip(", "),))


def _cell(task: TaskResult | None) -> TableCell:
    if task is None or task.score is None:
        return TableCell(ABSENT)
    fraction, notes = task.metric not in UNBOUNDED, []
    if task.low is not None and task.high is not None:
        notes.append(f"{_number(task.low, fraction)} to {_number(task.high, fraction)}")
    return TableCell(_number(task.score, fraction), (*notes, *_relative(task.relative)))


def _mean(mean: MeanScore | None) -> TableCell:
    """A mean is over fractions only: unbounded scores have none."""
    if mean is None or mean.score is None:
        return TableCell(ABSENT, _relative(mean.relative) if mean else ())
    return TableCell(_number(mean.score, fraction=True), _relative(mean.relative))


def _relative(relative: float | None) -> tuple[str, ...]:
    return () if relative is None else (f"{100 * relative:.1f} % of expert",)


def _number(value: float, fraction: bool) -> str:
    """A fraction in percent, anything else to four digits."""
    return f"{100 * value:.1f}" if fraction else f"{value:.4g}"
