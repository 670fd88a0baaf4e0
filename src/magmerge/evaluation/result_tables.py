"""Scores and sensitivities as tables; several models, and several seeds of each, in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from magmerge.core.errors import ParameterError
from magmerge.core.tables import Cell, Spread, Table
from magmerge.evaluation.scores import LOWER_IS_BETTER, Scores, ScoresList

if TYPE_CHECKING:
    from magmerge.evaluation.sensitivity import Sensitivity

ROWS = ("task", "metric", "score", "low", "high", "rows", "expert", "relative")


def scores_table(scores: Scores) -> Table:
    """A row for each task of one model."""
    rows = tuple(
        (row.title, row.metric, row.score, row.low, row.high, row.count, row.expert, row.relative)
        for row in scores.tasks
    )
    return Table(f"{scores.model} on {scores.suite} ({scores.split})", ROWS, rows)


def models_table(scores: ScoresList) -> Table:
    """A row for each model; of two with one name the second has its number."""
    names = [row.model for row in scores]
    return compare_scores(
        {
            name if names.index(name) == place else f"{name} ({place + 1})": row
            for place, (name, row) in enumerate(zip(names, scores, strict=True))
        }
    )


def compare_scores(
    models: Mapping[str, Scores | Sequence[Scores]], title: str | None = None
) -> Table:
    """A row for each model, a column for each task and the mean; the best of each in bold.

    A model may have several scores, of as many seeds: then a cell is their mean and standard
    deviation. ParameterError where the models were not measured on the same tasks and rows.
    """
    several = {k: [v] if isinstance(v, Scores) else [*v] for k, v in models.items()}
    every = [row for rows in several.values() for row in rows]
    if not all(several.values()) or not every:
        raise ParameterError(
            "there are no scores", source="compare_scores", remedy="give one for each model"
        )
    tasks = {(row.task, row.metric): row for row in every[0].tasks}
    for row in every:
        if {(own.task, own.metric): own.count for own in row.tasks} != {
            key: own.count for key, own in tasks.items()
        }:
            raise ParameterError(
                f"{row.model} was measured on other tasks or rows than {every[0].model}",
                source="compare_scores",
                remedy="measure all models on the same tasks of one split",
            )
    names = [task.title for task in every[0].tasks]
    columns = [
        name if names.count(name) == 1 else f"{name}, {task.metric}"
        for name, task in zip(names, every[0].tasks, strict=True)
    ]
    mean = ["mean"] if every[0].mean is not None else []
    rows: list[tuple[Cell, ...]] = []
    for name, own in several.items():
        cells = [Spread.of([one.tasks[n].score for one in own]) for n in range(len(columns))]
        cells += [Spread.of([one.mean or 0.0 for one in own])] if mean else []
        rows.append((name, *cells))
    rising = {
        column: task.metric not in LOWER_IS_BETTER
        for column, task in zip(columns, every[0].tasks, strict=True)
    }
    head = title or f"{every[0].suite} ({every[0].split})"
    return Table(head, ("model", *columns, *mean), tuple(rows), {**rising, "mean": True})


def sensitivity_table(found: Sensitivity) -> Table:
    """A row for each layer, the most sensitive first."""
    ranked = sorted(found.layers.items(), key=lambda layer: -layer[1])
    chosen = set(found.sensitive)
    rows = tuple((name, worse, "sensitive" if name in chosen else "") for name, worse in ranked)
    title = f"{found.score} worse by, when a layer's change is {found.factor:g} times as long"
    return Table(title, ("layer", "worse by", "list"), rows)
