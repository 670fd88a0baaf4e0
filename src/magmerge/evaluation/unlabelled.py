"""Models beside the base and the experts of a suite, on unlabelled rows of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from magmerge.core import dtypes
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.data.rows import Inputs
from magmerge.evaluation.calibration_samples import SPLITS, sample_source
from magmerge.evaluation.classification import Head, features_of, read_head, with_head
from magmerge.evaluation.entries import Features, path_of, task_names
from magmerge.evaluation.held_out import VALIDATION, splits_of
from magmerge.evaluation.live_model import Hardware, Measurable, ModelWeights, open_weights
from magmerge.evaluation.runner import Batch, Prepared, Runner, forward
from magmerge.evaluation.scores import TaskNearness
from magmerge.evaluation.task_scores import data_source
from magmerge.evaluation.task_suite import Suite
from magmerge.live.label_free import Answer, answer_of, compare, means, with_states

ROWS = 16
"""Unlabelled rows of each task that are looked at, if not said otherwise."""
SHARE = 0.5
"""Part of the memory that the answers of experts and base may take."""
Role = Literal["expert", "base"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A task's unlabelled rows, what of the output is looked at, and what is known of them.

    `part` None: a language model, whose logits are of tokens. `known` are the answers of expert and
    base, by the number of the batch.
    """

    task: str
    split: str
    expert: str
    inputs: Sequence[Inputs]
    part: Features | None
    head: Head | None
    classes: bool
    known: dict[tuple[Role, int], Answer] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(call.rows for call in self.inputs)

    @property
    def size(self) -> int:
        """The bytes of the answers that are known."""
        return sum(answer.size for answer in self.known.values())

    def batches(self, measure: Any) -> Prepared:
        """The rows as a runner takes them; `measure` is told the number of the batch."""
        batches, first = [], 0
        for number, call in enumerate(self.inputs):
            rows = tuple(range(first, first + call.rows))
            batches.append(Batch(rows, partial(_same, call), partial(measure, number)))
            first += call.rows
        return Prepared(tuple(batches), first, None, self.task)

    def keep(self, role: Role, number: int, module: nn.Module, inputs: Inputs) -> Tensor:
        """Remember what the base or the expert makes of a batch."""
        self.known[role, number] = self.answer(module, inputs)
        return torch.zeros(inputs.rows, 1)

    def compare(self, number: int, module: nn.Module, inputs: Inputs) -> Tensor:
        """The measures of a batch, [rows, measures]."""
        own, expert = self.answer(module, inputs), self.known["expert", number]
        for mine, other in zip(own, expert, strict=True):
            if mine is not None and other is not None and mine.shape != other.shape:
                raise MagmergeError(
                    f"its outputs have the shape {list(mine.shape)}, the expert's "
                    f"{list(other.shape)}",
                    source=f"the task {self.task}",
                    remedy="leave these measures out: --nearness 0 (nearness=0)",
                )
        return compare(own, expert, self.known["base", number])

    def answer(self, module: nn.Module, inputs: Inputs) -> Answer:
        """Features and logits as the task takes them."""
        if self.part is None:
            asked = with_states(module, inputs)
            answer = answer_of(forward(module, asked), inputs)
            if answer is None:
                raise MagmergeError(
                    "its output has neither logits nor features",
                    source=type(module).__name__,
                    remedy="leave these measures out: --nearness 0 (nearness=0)",
                )
            return answer
        features = features_of(forward(module, inputs), inputs, self.part)
        logits = features if self.head is None else with_head(features, self.head)
        return Answer(features.cpu(), logits.cpu() if self.classes else None)


def nearness(
    suite: Suite,
    models: Sequence[Measurable],
    *,
    rows: int = ROWS,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    **machine: Any,
) -> list[tuple[TaskNearness, ...]]:
    """How near each model comes to the suite's experts, on `rows` unlabelled rows of each task.

    Rows are of validation, else of those that calibrations draw from, never test rows; tasks that
    have none, or no expert, are left out, and all are where the suite names no base. Base and
    experts run once, one after the other, and what they make of the rows stays in memory. Raises
    ParameterError where that does not fit.
    """
    setting, own = Hardware(**machine), _rows(suite, tasks, rows, seed)
    if not own or suite.base is None:
        return [() for _ in models]
    experts: dict[str, list[Rows]] = {}
    for task in own:
        experts.setdefault(task.expert, []).append(task)
    opened = [open_weights(model, suite.base) for model in models]
    total = (len(opened) + 2) * sum(len(task.inputs) for task in own)
    runner = suite.runner(setting, total)
    _keep(runner, open_weights(suite.base, suite.base), own, "base", setting)
    for path, mine in experts.items():
        _keep(runner, open_weights(path, suite.base), mine, "expert", setting)
    # What the base makes of the rows is known already.
    base = [
        torch.cat(
            [
                compare(task.known["base", n], task.known["expert", n], task.known["base", n])
                for n in range(len(task.inputs))
            ]
        )
        for task in own
    ]
    results = []
    for modules in runner.groups(opened):
        answers = [runner.answers(modules, task.batches(task.compare)) for task in own]
        results += [
            tuple(map(_told, own, (answer[place] for answer in answers), base))
            for place in range(len(modules))
        ]
    return results


def _keep(
    runner: Runner, weights: ModelWeights, tasks: Sequence[Rows], role: Role, machine: Hardware
) -> None:
    """Let a model answer the rows of these tasks; ParameterError where that fills the memory."""
    for modules in runner.groups([weights]):
        for task in tasks:
            runner.answers(modules, task.batches(partial(task.keep, role)))
            if task.size > SHARE * dtypes.parse_size(machine.memory) / len(tasks):
                raise ParameterError(
                    f"what the {role} makes of {task.count} rows of {task.task} does not fit into "
                    "memory",
                    remedy="look at fewer rows (--nearness N), or none (--nearness 0), or give "
                    "more --memory",
                )


def _rows(suite: Suite, tasks: Sequence[str] | None, rows: int, seed: int) -> list[Rows]:
    """The unlabelled rows of the tasks that have some, and an expert."""
    result = []
    for name in task_names(suite.entry, tasks, str(suite.path)):
        entry, split = suite.entry.tasks[name], _split(suite, name)
        if entry.expert is None or split is None:
            continue
        source, part = data_source(name, entry, split, suite.path)
        samples = sample_source(suite, name, source, part)
        samples = replace(samples, draw=replace(samples.draw, fewer=True))
        head = None if entry.head is None else read_head(path_of(suite.path.parent, entry.head))
        classifies = entry.kind in ("classes", "values")
        result.append(
            Rows(
                name,
                split,
                path_of(suite.path.parent, entry.expert),
                samples.inputs(rows, seed, suite.base),
                suite.entry.features(entry) if classifies else None,
                head,
                entry.kind == "classes",
            )
        )
    return result


def _split(suite: Suite, task: str) -> str | None:
    """The split that is looked at: of validation, else one that calibrations may draw from."""
    known = splits_of(suite.entry.tasks[task], suite.path)
    return next((name for name in (*VALIDATION, *SPLITS) if name in known), None)


def _told(task: Rows, own: Tensor, base: Tensor) -> TaskNearness:
    found, before = means(own), means(base)
    return TaskNearness(
        task.task, task.split, task.count, found["feature error"], found["cosine"],
        found["norm ratio"], found["kl"], found["agreement"], before["kl"], before["agreement"],
    )  # fmt: skip


def _same(inputs: Inputs) -> Inputs:
    return inputs
