"""The demo: merge, calibrate, evaluate; one row for each model, one column for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from magmerge.core.lazy import Tabular
from magmerge.core.machine import Progress
from magmerge.engine.result import Result
from magmerge.evaluation.scores import Scores
from magmerge.pipeline.merge import calibrate, merge
from magmerge.report.html_file import write_report
from magmerge.report.terminal_tables import plain, table
from magmerge.studies.demo.demo_tasks import (
    base_folder,
    demo_experts,
    demo_suite,
    load_samples,
    settings,
)

VARIANTS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("task_arithmetic", (None, "wsc", "fsc", "dsc")),
    ("ties", (None, "dsc")),
    ("tsv_m", (None, "dsc")),
)
"""Merges and their calibrations. Of the spectral methods tsv_m is best on the validation texts."""
WRITTEN = ("task_arithmetic", "dsc")
"""The merge that the demo writes to disk: chosen beforehand, not by its test accuracy."""
DEFAULTS = {"task_arithmetic": {"lambda": 0.3}}
"""Defaults that are said, since for adapters they are chosen knowingly: all experts are added."""
SAMPLES = 8
"""Unlabelled texts of each task that fsc and dsc look at."""


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One model's accuracy on each task's test set, in the order of the tasks.

    `xi` is a calibration's mean factor over its layers, `xi_free` what it would be without the
    gate.
    """

    model: str
    accuracies: tuple[float, ...]
    xi: float | None = None
    xi_free: float | None = None

    @property
    def average(self) -> float:
        """Mean over the tasks."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True, slots=True)
class Demo(Tabular):
    """All rows, the tasks' names and numbers of test texts, and where checkpoint and report are."""

    tabled: ClassVar[str] = "magmerge.studies.result_tables:demo_table"
    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: tuple[DemoRow, ...]
    path: Path
    written: str
    report: Path
    samples: int


def demo(
    out: str | Path = "magmerge-demo",
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Demo:
    """Merge six real experts of a MiniLM encoder, calibrate the merges, and measure all of them.

    Everything comes with the package or with `magmerge[demo]`; nothing is downloaded. Writes one
    calibrated merge to `out`, with its report. Each method runs at its default parameters, and
    nothing is chosen by test accuracy.
    """
    base, experts = base_folder(), demo_experts()
    # Written first, so that an output that is taken is told before the long work.
    method, calibrator = WRITTEN
    written = merge(
        base=base, experts=experts, method=method, out=out,
        calibrate={"method": calibrator, "params": _plain(calibrator)},
        overwrite=overwrite, threads=threads, progress=progress, **_inputs(calibrator),
    )  # fmt: skip
    assert written.path is not None
    models: dict[str, Result] = {}
    for name, calibrators in VARIANTS:
        plain = merge(
            base=base, experts=experts, method=name, params=DEFAULTS.get(name), threads=threads
        )
        for space in calibrators:
            models[_label(name, space)] = plain if space is None else calibrate(
                plain.state_dict(), base=base, experts=experts, method=space,
                params=_plain(space), threads=threads, **_inputs(space),
            )  # fmt: skip
    scores = demo_suite().evaluate_all({"base": base, **models}, threads=threads, progress=progress)
    columns = scores["base"].tasks
    rows = [
        DemoRow("base", tuple(task.score for task in columns)),
        # Each expert on its own task only.
        DemoRow("experts", tuple(task.expert for task in columns if task.expert is not None)),
        *(_row(label, scores[label], model) for label, model in models.items()),
    ]
    tasks = tuple(task.task for task in columns)
    report = write_report(written.path, overwrite=True, scores=[_table(tasks, rows)])
    sizes = tuple(task.count for task in columns)
    return Demo(tasks, sizes, tuple(rows), written.path, _label(*WRITTEN), report, SAMPLES)


def _plain(calibrator: str) -> dict[str, Any]:
    """Parameters of a calibration as the paper has it: from all samples, and not checked."""
    return {} if calibrator == "wsc" else {"check": "off"}


def _inputs(calibrator: str | None) -> dict[str, Any]:
    """What a calibration that looks at inputs gets besides."""
    if calibrator in (None, "wsc"):
        return {}
    return {"data": load_samples(SAMPLES), "samples": {"max_length": settings()["max_length"]}}


def _row(label: str, scores: Scores, model: Result) -> DemoRow:
    accuracies = tuple(task.score for task in scores.tasks)
    layers = [record for record in model.records if record.calibrated_by]
    if not layers:
        return DemoRow(label, accuracies)
    xi = sum(layer.xi for layer in layers) / len(layers)
    free = sum(layer.xi_free for layer in layers) / len(layers)
    return DemoRow(label, accuracies, xi, free)


def _table(tasks: Sequence[str], rows: Sequence[DemoRow]) -> dict[str, Any]:
    """The table as a report takes it."""
    return {
        "columns": ["model", *tasks, "average"],
        "rows": [
            [row.model, *(f"{100 * value:.1f}" for value in (*row.accuracies, row.average))]
            for row in rows
        ],
        "caption": "Accuracy in % on the test texts of each task",
    }


def _label(method: str, calibrator: str | None) -> str:
    return method if calibrator is None else f"{method} + {calibrator}"


GATED = 0.005
"""Difference of mean factors from which on the gate is worth a note."""


def demo_table(demo: Demo) -> Table:
    """Rows of models, columns of tasks and their average, in percent of the test texts."""
    columns = [*demo.tasks, "average", "xi"]
    title = f"accuracy in %, {min(demo.sizes)} to {max(demo.sizes)} test texts a task"
    if min(demo.sizes) == max(demo.sizes):
        title = f"accuracy in %, {min(demo.sizes)} test texts a task"
    grid = table(title, "model", *columns, numbers=columns)
    for row in demo.rows:
        cells = [f"{100 * accuracy:.1f}" for accuracy in row.accuracies]
        style = "bold" if " + " in row.model else ""
        average = plain(f"{100 * row.average:.1f}", "bold")
        xi = "" if row.xi is None else f"{row.xi:.2f}"
        # Under the row of its merge, so that the table fits 80 columns.
        name = f"  + {row.model.partition(' + ')[2]}" if row.xi is not None else row.model
        grid.add_row(plain(name, style), *cells, average, xi)
    return grid


def demo_notes(demo: Demo) -> list[str]:
    """What a reader of the table must know."""
    notes = [
        "Each expert is measured on its own task only. Methods are at their defaults.",
        "xi is the mean factor that the calibration puts on the merged task vectors.",
        f"wsc looks at weights only, fsc at {demo.samples} unlabelled texts a task, dsc at both.",
    ]
    notes += [
        f"{row.model}: the gate lets no row shrink; without it xi would be {row.xi_free:.2f}."
        for row in demo.rows
        if row.xi is not None and row.xi_free is not None and row.xi - row.xi_free > GATED
    ]
    return notes
