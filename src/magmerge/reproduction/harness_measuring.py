"""How a pipeline's language models are measured: on tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magmerge.errors import ParameterError
from magmerge.evaluation.harness import LmEval, run_harness
from magmerge.evaluation.scores import TaskScore
from magmerge.machine import Progress
from magmerge.reproduction.measuring import Machine, told
from magmerge.reproduction.pipelines import ExpertEntry
from magmerge.samples import Inputs, Preparation, has_splits, prepare, read_samples

LONGEST = 512
"""Tokens of a sample, at most."""
MODEL_CLASS = "AutoModelForCausalLM"


class HarnessMeasure:
    """The tasks that the experts' entries name; every model is a folder.

    `include` is a folder of task files beside the harness's own.
    """

    model_class: str | None = MODEL_CLASS

    def __init__(
        self,
        base: Path,
        experts: Mapping[str, Path],
        entries: Mapping[str, ExpertEntry],
        include: Path | None,
        machine: Machine,
        progress: Progress | None,
    ) -> None:
        self._base, self._experts = base, experts
        self._entries, self._include = entries, include
        self._machine, self._progress = machine, progress

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The harness's tasks of an expert's skill."""
        return self._entries[expert].tasks

    def base(self) -> Path:
        """The base as it is measured."""
        return self._base

    def expert(self, expert: str) -> Path:
        """An expert as it is measured."""
        return self._experts[expert]

    def samples(self, expert: str, count: int, seed: int, base: Path) -> list[Inputs]:
        """Unlabelled samples of an expert's skill as inputs, never of the test split."""
        entry = self._entries[expert]
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
        found: dict[str, dict[str, TaskScore]] = {name: {} for name in models}
        for task in self.tasks_of(expert):
            scores = run_harness(
                list(models.values()),
                LmEval((task,), include=self._include),
                device=self._machine.device,
                dtype=self._machine.dtype,
                # The only folder there can be is the one that a tiny run wrote itself.
                allow_code=True,
                progress=told(self._progress, task),
            )
            for name, one in zip(models, scores, strict=True):
                found[name][task] = one.tasks[0]
        return found
