"""The scores of a run as rows of models and columns of tasks, beside published figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text

from magmerge.core import registry
from magmerge.core.lazy import Tabular
from magmerge.core.validation import check_parameters
from magmerge.report.terminal_tables import paragraph, plain, table
from magmerge.studies.reproduction.pipelines import PUBLISHED_MEAN, Pipeline
from magmerge.studies.reproduction.run_scores import RunScores
from magmerge.studies.reproduction.run_spec import RunSpec, Variant

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
class Reproduction(Tabular):
    """A finished run: where it is, its rows, and the sources of published figures.

    `columns` are the tasks of each expert that was merged; the first of an expert's is in the mean.
    `sensitive` layers were found, `alpha` were asked for.
    """

    tabled: ClassVar[str] = "magmerge.studies.result_tables:reproduction_table"
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
    tasks = [task for group in columns.values() for task in group]
    counted = [group[0] for group in columns.values()]
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


LEGEND = {
    "wsc": "wsc looks at weights only",
    "fsc": "fsc at {samples} unlabelled samples a task",
    "dsc": "dsc at both",
    "global": "global: FSC's mean factor at every layer",
    "shuffled": "shuffled: FSC's factors at other layers",
}


def _cells(run: Reproduction) -> tuple[list[str], list[list[str]]]:
    """The columns, published means only where there are any, and each row's cells of text."""
    numbers = _numbers(run)
    columns = [*run.tasks, "mean", *(f"published [{number}]" for number in numbers)]
    rows = [
        [row.model]
        + [_spoken(row.scores.get(task)) for task in run.tasks]
        + [_spoken(row.mean)]
        + [f"{row.published[n]:.1f}" if n in row.published else "" for n in numbers]
        for row in run.rows
    ]
    return columns, rows


def reproduction_table(run: Reproduction) -> Table:
    """A row for each model, a calibrated one under its merge."""
    columns, rows = _cells(run)
    grid, method, count = table("", "model", *columns, numbers=columns), "", len(run.tasks)
    for model, *cells in rows:
        head, _, space = model.partition("+")
        name = f"  +{space}" if head == method else model
        grid.add_row(name, *cells[:count], plain(cells[count], "bold"), *cells[count + 1 :])
        method = head
    return grid


def reproduction_notes(run: Reproduction) -> list[Text]:
    """What a reader of the table must know."""
    notes = []
    if run.tiny:
        notes.append(
            "Small random models, tuned for a moment on generated data: this shows the path, and "
            "its figures say nothing about the methods."
        )
    spaces = {row.model.partition("+")[2] for row in run.rows} - {""}
    said = [LEGEND[space] for space in LEGEND if space in spaces]
    if said:
        notes.append("; ".join(said).format(samples=run.samples) + ".")
    repeated = any(len(tasks) > 1 for tasks in run.columns.values())
    counted = ", the mean over the first metric of each task" if repeated else ""
    notes.append(
        f"Scores times 100: accuracy, or the metric that the suite names{counted}. zero-shot is "
        "the base; experts are measured on their own task only."
    )
    notes.append(_sensitive(run))
    numbers = _numbers(run)
    for number, entry in enumerate(run.pipeline.published, start=1):
        mark = f"[{number}] " if number in numbers else "Published: "
        remark = "" if entry.note is None else f" ({entry.note})"
        notes.append(f"{mark}{entry.source}; checkpoints: {entry.line}{remark}.")
    return [paragraph(note) for note in notes]


def _sensitive(run: Reproduction) -> str:
    """Which layers may only shrink."""
    if run.alpha == 0:
        return "No sensitive layers were looked for: every layer may only grow."
    if not run.sensitive:
        return "Sensitive layers: none does harm on the generic set, so every layer may only grow."
    return f"Sensitive layers, which may only shrink: {', '.join(run.sensitive)}."


def markdown(run: Reproduction) -> str:
    """The same table and notes as Markdown."""
    columns, rows = _cells(run)
    lines = [
        f"### {run.title}" + (" (tiny)" if run.tiny else ""),
        "",
        f"| {' | '.join(['model', *columns])} |",
        "|---|" + "---:|" * len(columns),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    notes = [f"- {note.plain}" for note in reproduction_notes(run)]
    said = [f"- Warning: {warning}" for warning in run.warnings]
    return "\n".join([*lines, "", *notes, *said, ""])


def _numbers(run: Reproduction) -> list[int]:
    """Sources that have a figure for some row."""
    return sorted({number for row in run.rows for number in row.published})


def _spoken(spread: Spread | None) -> str:
    """In %, with half of the range over the draws where there are several."""
    if spread is None:
        return ""
    half = 50 * (spread.high - spread.low)
    return f"{100 * spread.mean:.1f}" + (f" ± {half:.1f}" if spread.high > spread.low else "")
