"""What a run has found, as rows of models and columns of tasks beside published figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.reproduction.ledger import Ledger
from magmerge.reproduction.pipelines import PUBLISHED_MEAN, Pipeline
from magmerge.reproduction.variants import Variant

ZERO_SHOT, EXPERTS = "zero-shot", "experts"
"""Rows of the base, and of each expert on its own task."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A score over the draws of samples: mean, least and greatest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.mean(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """One model: its scores by task, their mean, and published means by source's number."""

    model: str
    scores: dict[str, Spread]
    mean: Spread | None
    published: dict[int, float]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A finished run: where it is, its rows, and the sources of published figures.

    `experts` are the tasks that were merged, `tasks` the columns: an expert may have several.
    """

    pipeline: Pipeline
    folder: Path
    experts: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    sensitive: tuple[str, ...]
    warnings: tuple[str, ...]
    tiny: bool
    samples: int

    @property
    def title(self) -> str:
        """The pipeline's title, and how much of it this is."""
        merged, whole = len(self.experts), len(self.pipeline.experts)
        part = "" if merged == whole else f": {merged} of {whole}"
        return self.pipeline.title + part

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        return {
            "pipeline": self.pipeline.name,
            "tiny": self.tiny,
            "folder": str(self.folder),
            "experts": list(self.experts),
            "tasks": list(self.tasks),
            "sensitive": list(self.sensitive),
            "warnings": list(self.warnings),
            "rows": [
                {
                    "model": row.model,
                    "scores": {task: vars_of(one) for task, one in row.scores.items()},
                    "mean": None if row.mean is None else vars_of(row.mean),
                    "published": {str(n): value for n, value in row.published.items()},
                }
                for row in self.rows
            ],
            "published": [
                one.model_dump(mode="json", exclude={"models"}) for one in self.pipeline.published
            ],
        }


def vars_of(spread: Spread) -> dict[str, float]:
    """A spread as JSON holds it."""
    return {"mean": spread.mean, "low": spread.low, "high": spread.high}


def rows_of(
    pipeline: Pipeline, ledger: Ledger, variants: Sequence[Variant], tasks: Sequence[str]
) -> tuple[Row, ...]:
    """The base, the experts, and each merge over its draws; rows without any score left out."""
    groups: dict[str, list[str]] = {ZERO_SHOT: [ZERO_SHOT], EXPERTS: [EXPERTS]}
    for variant in variants:
        groups.setdefault(Variant(variant.method, variant.space).name, []).append(variant.name)
    found = []
    for name, members in groups.items():
        cells = [ledger.cells[one] for one in members if one in ledger.cells]
        shared = [task for task in tasks if cells and all(task in row for row in cells)]
        if not shared:
            continue
        scores = {task: Spread.of([row[task].score for row in cells]) for task in shared}
        found.append(Row(name, scores, _mean(cells, shared, tasks), _published(pipeline, name)))
    return tuple(found)


def _mean(cells: Any, shared: Sequence[str], tasks: Sequence[str]) -> Spread | None:
    """Over all tasks whose score is the better the higher; None while some are unmeasured."""
    if len(shared) < len(tasks):
        return None
    counted = [task for task in tasks if cells[0][task].metric != "perplexity"]
    means = [statistics.mean(row[task].score for task in counted) for row in cells if counted]
    return Spread.of(means) if means else None


def _published(pipeline: Pipeline, model: str) -> dict[int, float]:
    return {
        number: entry.models[model][PUBLISHED_MEAN]
        for number, entry in enumerate(pipeline.published, start=1)
        if PUBLISHED_MEAN in entry.models.get(model, {})
    }
