"""How a pipeline's models are measured: on the tasks of a suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from magmerge.errors import ParameterError
from magmerge.evaluation import open_suite
from magmerge.evaluation.entries import resolved
from magmerge.evaluation.scores import TaskScore
from magmerge.evaluation.suite import Suite
from magmerge.machine import Progress
from magmerge.reproduction.preparing import Ready
from magmerge.samples import Inputs, has_splits, prepare, read_samples

CALIBRATION = ("calibration", "train")
"""Splits that samples are drawn from: the first that a task has."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the arithmetic is done with; none of it changes a result, but for the dtype."""

    threads: int | None = None
    workers: int | None = None
    memory: str | int = "8GB"
    device: str = "cpu"
    dtype: str | None = None


class Measure(Protocol):
    """What a pipeline's models are measured on."""

    @property
    def model_class(self) -> str | None:
        """The class of transformers that runs the models."""
        ...

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The tasks that belong to an expert."""
        ...

    def base(self) -> Any:
        """The base as it is measured."""
        ...

    def expert(self, expert: str) -> Any:
        """An expert as it is measured."""
        ...

    def samples(self, expert: str, count: int, seed: int, base: Path) -> list[Inputs]:
        """Unlabelled samples of an expert's task as inputs, never of the test split."""
        ...

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """All models on the tasks of an expert: scores by model and task."""
        ...


class SuiteMeasure:
    """The tasks of one suite file; a task of an expert may have several entries (metrics)."""

    def __init__(
        self, path: Path, ready: Ready, machine: Machine, progress: Progress | None
    ) -> None:
        self.suite: Suite = open_suite(path)
        self._ready = ready
        self._machine, self._progress = machine, progress

    @property
    def model_class(self) -> str | None:
        """The class of transformers that runs the models."""
        return self.suite.entry.model.class_

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The entries that belong to an expert's task: its own, and those named after it."""
        return tuple(
            name for name in self.suite.tasks if name == expert or name.startswith(f"{expert}-")
        )

    def base(self) -> Mapping[str, Tensor]:
        """The base as it is measured."""
        return self._ready.weights_of_base()

    def expert(self, expert: str) -> Mapping[str, Tensor]:
        """An expert as it is measured: what it lacks is the base's."""
        return self._ready.weights(expert)

    def samples(self, expert: str, count: int, seed: int, base: Path) -> list[Inputs]:
        """Unlabelled samples of an expert's task as inputs, never of the test split."""
        task = self.tasks_of(expert)[0]
        entry = self.suite.entry.tasks[task]
        source, split = calibration_source(self.suite, task)
        rows = read_samples(
            source,
            name=expert,
            field=entry.text_field,
            samples=count,
            seed=seed,
            split=split,
            pair_field=entry.pair_field,
        )
        return prepare(rows, base, self.suite.entry.preparation(entry))

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """All models on an expert's tasks, in one pass over their data where memory allows."""
        machine, tasks = self._machine, self.tasks_of(expert)
        found = self.suite.evaluate_all(
            models,
            tasks=tasks,
            threads=machine.threads,
            workers=machine.workers,
            memory=machine.memory,
            device=machine.device,
            dtype=machine.dtype,
            progress=told(self._progress, expert),
        )
        return {name: {task: scores[task] for task in tasks} for name, scores in found.items()}


def told(progress: Progress | None, task: str) -> Progress | None:
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
