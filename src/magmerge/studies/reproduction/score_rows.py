"""What a run has found, as rows of models and columns of tasks beside published figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magmerge.core import registry
from magmerge.core.validation import check_parameters
from magmerge.studies.reproduction.pipelines import PUBLISHED_MEAN, Pipeline
from magmerge.studies.reproduction.run_scores import RunScores
from magmerge.studies.reproduction.run_spec import RunSpec
from magmerge.studies.reproduction.variants import Variant

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
class ModelRow:
    """One model: its scores by task, their mean, and published means by source's number."""

    model: str
    scores: dict[str, Spread]
    mean: Spread | None
    published: dict[int, float]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A finished run: where it is, its rows, and the sources of published figures.

    `columns` are the tasks of each expert that was merged; the first of an expert's is in the mean.
    `sensitive` layers were found, `alpha` were asked for.
    """

    pipeline: Pipeline
    folder: Path
    columns: Mapping[str, tuple[str, ...]]
    rows: tuple[ModelRow, ...]
    sensitive: tuple[str, ...]
    alpha: int
    warnings: tuple[str, ...]
    samples: int

    @property
    def tiny(self) -> bool:
        """Whether models and data are small generated ones."""
        return self.pipeline.tiny

    @property
    def tasks(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(task for tasks in self.columns.values() for task in tasks)

    @property
    def title(self) -> str:
        """The pipeline's title, and how much of it this is."""
        merged, whole = len(self.columns), len(self.pipeline.experts)
        part = "" if merged == whole else f": {merged} of {whole}"
        return self.pipeline.title + part

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        return {
            "pipeline": self.pipeline.name,
            "tiny": self.tiny,
            "folder": str(self.folder),
            "columns": {expert: list(tasks) for expert, tasks in self.columns.items()},
            "sensitive": list(self.sensitive),
            "warnings": list(self.warnings),
            "rows": [
                {
                    "model": row.model,
                    "scores": {task: asdict(spread) for task, spread in row.scores.items()},
                    "mean": None if row.mean is None else asdict(row.mean),
                    "published": {str(n): value for n, value in row.published.items()},
                }
                for row in self.rows
            ],
            "published": [
                figures.model_dump(mode="json", exclude={"models"})
                for figures in self.pipeline.published
            ],
        }


def rows_of(
    request: RunSpec, ledger: RunScores, columns: Mapping[str, tuple[str, ...]]
) -> tuple[ModelRow, ...]:
    """The base, the experts, and each merge over its draws; rows without any score left out."""
    groups: dict[str, list[str]] = {ZERO_SHOT: [ZERO_SHOT], EXPERTS: [EXPERTS]}
    for variant in request.variants:
        groups.setdefault(Variant(variant.method, variant.space).name, []).append(variant.name)
    tasks = [task for several in columns.values() for task in several]
    counted = [several[0] for several in columns.values()]
    entries = []
    for name, members in groups.items():
        cells = [
            ledger.results.cells[member] for member in members if member in ledger.results.cells
        ]
        shared = [task for task in tasks if cells and all(task in row for row in cells)]
        if not shared:
            continue
        scores = {task: Spread.of([row[task].score for row in cells]) for task in shared}
        means = [statistics.mean(row[task].score for task in counted) for row in cells]
        mean = Spread.of(means) if set(counted) <= set(shared) else None
        entries.append(ModelRow(name, scores, mean, published_means(request, name)))
    return tuple(entries)


def published_means(request: RunSpec, model: str) -> dict[int, float]:
    """Published means by the number of their source, where this run is of the same kind.

    None beside small models, beside a part of the tasks, and where a method's parameters are
    others than the published ones.
    """
    if request.pipeline.tiny or len(request.tasks) < len(request.pipeline.experts):
        return {}
    entries = {}
    for number, entry in enumerate(request.pipeline.published, start=1):
        own = _parameters(model, request.params.get(model, {}))
        published = _parameters(model, entry.params.get(model, {}))
        if PUBLISHED_MEAN in entry.models.get(model, {}) and own == published:
            entries[number] = entry.models[model][PUBLISHED_MEAN]
    return entries


def _parameters(model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a method; none of the base and the experts."""
    if model in (ZERO_SHOT, EXPERTS) or "+" in model:
        return {}
    return check_parameters(registry.methods.get(model), params)
