"""What a pipeline's models are measured on: tasks of a suite, or of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from magmerge.core.errors import ParameterError
from magmerge.core.machine import Progress
from magmerge.data import Inputs, Preparation, has_splits, prepare, read_samples
from magmerge.evaluation import open_suite
from magmerge.evaluation.entries import resolved
from magmerge.evaluation.harness import LmEval, run_harness
from magmerge.evaluation.runner import Hardware
from magmerge.evaluation.scores import TaskScore
from magmerge.evaluation.task_suite import Suite
from magmerge.studies.reproduction.pipeline_models import Ingredients, Models
from magmerge.studies.reproduction.pipelines import Pipeline

CALIBRATION = ("calibration", "train")
"""Splits that samples are drawn from: the first that a task has."""
LONGEST = 512
"""Tokens of a sample for a language model, at most."""


class SuiteMeasure:
    """The tasks of one suite file; a task of an expert may have several entries (metrics)."""

    def __init__(
        self, path: Path, parts: Ingredients, machine: Hardware, progress: Progress | None
    ) -> None:
        self.suite: Suite = open_suite(path)
        self._machine, self._progress = machine, progress
        # Models as they are measured; what an expert lacks is the base's.
        self.base, self.expert = parts.weights_of_base(), parts.weights

    @property
    def model_class(self) -> str | None:
        """The class of transformers that runs the models."""
        return self.suite.entry.model.class_

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The entries that belong to an expert's task: its own, and those named after it."""
        return tuple(
            name for name in self.suite.tasks if name == expert or name.startswith(f"{expert}-")
        )

    def samples(self, expert: str, count: int, seed: int, base: Path) -> list[Inputs]:
        """Unlabelled samples of an expert's task as inputs, never of the test split."""
        task = self.tasks_of(expert)[0]
        entry = self.suite.entry.tasks[task]
        source, split = calibration_source(self.suite, task)
        rows = read_samples(
            source, name=expert, field=entry.text_field, samples=count, seed=seed, split=split,
            pair_field=entry.pair_field,
        )  # fmt: skip
        return prepare(rows, base, self.suite.entry.preparation(entry))

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """All models on an expert's tasks, in one pass over their data where memory allows."""
        machine, tasks = self._machine, self.tasks_of(expert)
        scores = self.suite.evaluate_all(
            models, tasks=tasks, progress=_named(self._progress, expert), **machine.as_dict()
        )
        return {name: {task: own[task] for task in tasks} for name, own in scores.items()}


class HarnessMeasure:
    """The harness's tasks that a pipeline's entries name; every model is a folder."""

    model_class: str | None = "AutoModelForCausalLM"

    def __init__(
        self, models: Models, pipeline: Pipeline, machine: Hardware, progress: Progress | None
    ) -> None:
        self._pipeline, self._machine, self._progress = pipeline, machine, progress
        self.base, self.expert = models.base, models.experts.__getitem__

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The harness's tasks of an expert's skill."""
        return self._pipeline.experts[expert].tasks

    def samples(self, expert: str, count: int, seed: int, base: Path) -> list[Inputs]:
        """Unlabelled samples of an expert's skill as inputs, never of the test split."""
        entry = self._pipeline.experts[expert]
        if entry.data is None:
            raise ParameterError(
                f"nothing tells where samples of {expert} come from",
                remedy="leave fsc and dsc out of --spaces",
            )
        split = "train" if has_splits(entry.data) else None
        rows = read_samples(
            entry.data, name=expert, field=entry.text_field, samples=count, seed=seed, split=split
        )
        return prepare(rows, base, Preparation(max_length=LONGEST))

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """Each model on the tasks of a skill, by each task's first metric."""
        rows: dict[str, dict[str, TaskScore]] = {name: {} for name in models}
        for task in self.tasks_of(expert):
            scores = run_harness(
                list(models.values()),
                LmEval((task,), include=self._pipeline.include),
                self._machine,
                # A pipeline with task files is refused without the user's word.
                allow_code=True,
                progress=_named(self._progress, task),
            )
            for name, one in zip(models, scores, strict=True):
                rows[name][task] = one.tasks[0]
        return rows


Measure: TypeAlias = SuiteMeasure | HarnessMeasure


def _named(progress: Progress | None, task: str) -> Progress | None:
    """Progress that names the task, of the forward passes alone."""
    if progress is None:
        return None

    def tell(label: str, done: int, total: int) -> None:
        if label == "evaluating":
            progress(f"measuring {task}", done, total)

    return tell


def calibration_source(suite: Suite, task: str) -> tuple[str, str | None]:
    """Where a task's samples for calibration are, and their split; ParameterError if nowhere."""
    data = suite.entry.tasks[task].data
    known = {CALIBRATION[1]: data} if isinstance(data, str) else data
    split = next((name for name in CALIBRATION if name in known), None)
    if split is None:
        raise ParameterError(
            f"the task {task} has no split to draw samples from",
            source=suite.path,
            remedy=f"give its data a split {' or '.join(CALIBRATION)}",
        )
    source = resolved(suite.path.parent, known[split])
    return source, split if has_splits(source) else None
