"""The demo's encoder at work: texts to features to accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from magmerge.core.machine import Progress
from magmerge.data import Preparation, Rows, Texts
from magmerge.evaluation.batches import Prepared
from magmerge.evaluation.classification import Head, class_batches
from magmerge.evaluation.entries import ModelEntry
from magmerge.evaluation.runner import Hardware, Runner
from magmerge.evaluation.tasks import measured
from magmerge.evaluation.weights import LiveModel, open_weights
from magmerge.studies.demo.tasks import Task, settings


class Encoder:
    """A sentence encoder whose weights can be exchanged; each task's texts are tokenised once.

    It begins with the weights in `folder`. `rows` is how many times all tasks will be measured, for
    `progress`.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Task],
        *,
        threads: int | None = None,
        rows: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self._tasks = {task.name: _prepared(task, folder) for task in tasks}
        self._live = LiveModel(ModelEntry.model_validate({"class": "AutoModel"}), folder)
        total = rows * sum(len(task.batches) for task in self._tasks.values())
        self._runner = Runner([self._live], Hardware(threads=threads), progress, total)
        self._module: nn.Module = self._live.put(open_weights(folder, None), None, None)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of `state`; StructureError where some are missing."""
        self._module = self._live.put(open_weights(state, None), None, None)

    def accuracy(self, task: Task) -> float:
        """The share of the task's texts whose label has the greatest logit."""
        prepared = self._tasks[task.name]
        (answers,) = self._runner.answers([self._module], prepared)
        return measured("accuracy", prepared, answers).score


def _prepared(task: Task, folder: Path) -> Prepared:
    """A task's texts in tokens; the head, without a bias, takes features of any length."""
    rows = Rows(task.name, task.name, Texts(task.texts))
    head = Head(task.head, torch.zeros(len(task.head)))
    options = Preparation(max_length=settings()["max_length"])
    batches = class_batches(rows, folder, options, "mean", head)
    return Prepared(batches, len(rows), torch.tensor(task.labels), task.name)
