"""The table of a pipeline: models by tasks, beside published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from magmerge.report.terminal_tables import paragraph, plain, table

if TYPE_CHECKING:
    from magmerge.studies.reproduction.run_estimate import RunEstimate
    from magmerge.studies.reproduction.score_rows import ModelRow, Reproduction, Spread

GB = 10**9
LEGEND = {
    "wsc": "wsc looks at weights only",
    "fsc": "fsc at {samples} unlabelled samples a task",
    "dsc": "dsc at both",
    "global": "global: FSC's mean factor at every layer",
    "shuffled": "shuffled: FSC's factors at other layers",
}


def reproduction_table(run: Reproduction) -> Table:
    """A row for each model; columns of published means only where there are any."""
    numbers = _numbers(run)
    columns = [*run.tasks, "mean", *(f"published [{number}]" for number in numbers)]
    grid = table("", "model", *columns, numbers=columns)
    grid.title = None
    method = ""
    for row in run.rows:
        head = row.model.partition("+")[0]
        name = row.model if head != method else f"  +{row.model.partition('+')[2]}"
        method = head
        cells = [_spoken(row.scores.get(task)) for task in run.tasks]
        grid.add_row(name, *cells, plain(_spoken(row.mean), "bold"), *_published(row, numbers))
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
    several = any(len(tasks) > 1 for tasks in run.columns.values())
    counted = ", the mean over the first metric of each task" if several else ""
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


def estimate_text(estimate: RunEstimate) -> Text:
    """What the run will take."""
    time = "" if estimate.seconds is None else f", about {_duration(estimate.seconds)} by a trial"
    rows = f", {estimate.rows} test rows each" if estimate.rows else ""
    parts = [f"{estimate.models} models to make{rows}{time}"]
    if estimate.download:
        parts.append(f"{_gigabytes(estimate.download)} of models to fetch, and the data sets")
    disk, free = _gigabytes(estimate.disk), _gigabytes(estimate.free)
    parts.append(f"at most {disk} of disk for merges at once, {free} are free")
    return plain("; ".join(parts))


def markdown(run: Reproduction) -> str:
    """The same table and notes as Markdown."""
    numbers = _numbers(run)
    columns = ["model", *run.tasks, "mean", *(f"published [{number}]" for number in numbers)]
    lines = [
        f"### {run.title}" + (" (tiny)" if run.tiny else ""),
        "",
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
    ]
    for row in run.rows:
        cells = [_spoken(row.scores.get(task)) for task in run.tasks]
        cells += [_spoken(row.mean), *_published(row, numbers)]
        lines.append(f"| {row.model} | " + " | ".join(cells) + " |")
    notes = [f"- {note.plain}" for note in reproduction_notes(run)]
    said = [f"- Warning: {warning}" for warning in run.warnings]
    return "\n".join([*lines, "", *notes, *said, ""])


def _numbers(run: Reproduction) -> list[int]:
    """Sources that have a figure for some row."""
    return sorted({number for row in run.rows for number in row.published})


def _published(row: ModelRow, numbers: list[int]) -> list[str]:
    return [f"{row.published[n]:.1f}" if n in row.published else "" for n in numbers]


def _spoken(spread: Spread | None) -> str:
    """In %, with half of the range over the draws where there are several."""
    if spread is None:
        return ""
    half = 50 * (spread.high - spread.low)
    return f"{100 * spread.mean:.1f}" + (f" ± {half:.1f}" if spread.high > spread.low else "")


def _gigabytes(size: float) -> str:
    if size < 0.01 * GB:
        return "under 10 MB"
    return f"{size / GB:.{2 if size < GB else 0 if size > 100 * GB else 1}f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
