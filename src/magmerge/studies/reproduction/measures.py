"""What a pipeline's models are measured on: tasks of a suite, or of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from magmerge.core.errors import ParameterError
from magmerge.core.machine import Progress
from magmerge.data import Preparation, has_splits
from magmerge.evaluation import open_suite
from magmerge.evaluation.calibration_samples import SampleSource, calibration_split, sample_source
from magmerge.evaluation.harness import LmEval, run_harness
from magmerge.evaluation.runner import Hardware
from magmerge.evaluation.scores import TaskScore
from magmerge.evaluation.task_suite import Suite
from magmerge.studies.reproduction.pipeline_models import Ingredients, PipelineModels
from magmerge.studies.reproduction.pipelines import Pipeline

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

    def samples(self, expert: str) -> SampleSource:
        """Unlabelled samples of an expert's task, never of the test split."""
        return sample_source(self.suite, expert, *calibration_split(self.suite, expert))

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
        self,
        models: PipelineModels,
        pipeline: Pipeline,
        machine: Hardware,
        progress: Progress | None,
    ) -> None:
        self._pipeline, self._machine, self._progress = pipeline, machine, progress
        self.base, self.expert = models.base, models.experts.__getitem__

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The harness's tasks of an expert's skill."""
        return self._pipeline.experts[expert].tasks

    def samples(self, expert: str) -> SampleSource:
        """Unlabelled samples of an expert's skill, never of the test split."""
        entry = self._pipeline.experts[expert]
        if entry.data is None:
            raise ParameterError(
                f"nothing tells where samples of {expert} come from",
                remedy="leave fsc and dsc out of --spaces",
            )
        split = "train" if has_splits(entry.data) else None
        how = Preparation(max_length=LONGEST)
        return SampleSource(expert, entry.data, split, entry.text_field, preparation=how)

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


TaskMeasure: TypeAlias = SuiteMeasure | HarnessMeasure


def _named(progress: Progress | None, task: str) -> Progress | None:
    """Progress that names the task, of the forward passes alone."""
    if progress is None:
        return None

    def tell(label: str, done: int, total: int) -> None:
        if label == "evaluating":
            progress(f"measuring {task}", done, total)

    return tell
