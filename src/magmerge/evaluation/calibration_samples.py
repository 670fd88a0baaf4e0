"""Unlabelled samples of a suite's tasks, which calibrations may see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from magmerge.core.errors import ParameterError
from magmerge.data.inputs import prepare
from magmerge.data.rows import Inputs, Preparation, SampleDraw
from magmerge.data.sources import read_samples
from magmerge.engine.notes import warn
from magmerge.evaluation.task_scores import data_source
from magmerge.evaluation.task_suite import Suite

SPLITS = ("calibration", "train")
"""Splits of a task that samples are drawn from: the first that it has."""


@dataclass(frozen=True, slots=True)
class SampleSource:
    """Where the samples of one task come from; what is drawn depends on `draw.name`."""

    source: str
    draw: SampleDraw
    preparation: Preparation

    def inputs(self, samples: int, seed: int, folder: Path | None) -> list[Inputs]:
        """`samples` rows as a model's inputs, never test rows; `folder` has the tokenizer."""
        rows = read_samples(self.source, replace(self.draw, samples=samples, seed=seed))
        warn(rows.notes)
        return prepare(rows, folder, self.preparation)


def calibration_split(suite: Suite, task: str) -> tuple[str, str | None]:
    """Where a task's unlabelled samples are, and their split; ParameterError if nowhere."""
    entry = suite.entry.tasks[task]
    # Of one source that has splits, train; one without holds the rows that are measured.
    known = SPLITS[1:] if isinstance(entry.data, str) else tuple(entry.data)
    split = next((name for name in SPLITS if name in known), None)
    if split is None:
        raise ParameterError(
            f"the task {task} has no split to draw samples from",
            source=suite.path,
            remedy=f"give its data a split {' or '.join(SPLITS)}",
        )
    return data_source(task, entry, split, suite.path)


def sample_source(suite: Suite, name: str, source: str, split: str | None = None) -> SampleSource:
    """Samples read and prepared as the rows of the task of that name, if there is one."""
    entry, draw = suite.entry.tasks.get(name), SampleDraw(name)
    if entry is not None:
        field, pair_field = entry.text_field, entry.pair_field
        draw = replace(draw, split=split, field=field, pair_field=pair_field)
    return SampleSource(source, draw, suite.entry.preparation(entry))
