"""What a search makes larger or smaller: one number from a model's answers on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.evaluation.held_out import HeldOutTask
from magmerge.evaluation.metrics import resamples
from magmerge.evaluation.task_scores import scoring_of
from magmerge.linalg.draws import derive_seed

Answers = Mapping[str, Tensor]
"""What a model made of each task's rows."""
LOSSES = frozenset({"perplexity", "distance"})
"""Metrics whose number here is a mean loss, the better the lower."""
METRICS = ("mean", "worst", "relative")


@dataclass(frozen=True, slots=True)
class Objective:
    """The tasks and how their numbers become one: their mean; the worst of them; or the mean share
    of each expert's own number, `experts`. Losses are in nats for each token, or distances.
    """

    tasks: Mapping[str, HeldOutTask]
    metric: str = "mean"
    experts: Mapping[str, float] = field(default_factory=dict)

    @property
    def rising(self) -> bool:
        """Whether more is better."""
        return rises(self.metric, [task.metric for task in self.tasks.values()])

    @property
    def count(self) -> int:
        """How many rows are looked at."""
        return sum(task.prepared.count for task in self.tasks.values())

    @property
    def words(self) -> str:
        """What the number is."""
        kinds = sorted({task.metric for task in self.tasks.values()})
        name = kinds[0] if len(kinds) == 1 else "score"
        spoken = {"perplexity": "loss in nats a token", "distance": "distance to the experts"}
        what = spoken.get(name, name)
        if self.metric == "relative":
            return f"mean share of the experts' {what}"
        if len(self.tasks) == 1:
            return what
        return f"{'worst' if self.metric == 'worst' else 'mean'} {what} of {len(self.tasks)} tasks"

    def numbers(self, answers: Answers) -> dict[str, float]:
        """Each task's own number."""
        return {name: float(_number(task, answers[name])) for name, task in self.tasks.items()}

    def value(self, answers: Answers) -> float:
        """The one number; not finite where a model's outputs are not."""
        numbers = {name: _number(task, answers[name]) for name, task in self.tasks.items()}
        return float(self._joined(numbers))

    def gain(self, before: Answers, after: Answers) -> tuple[float, float]:
        """By how much `after` is better, and its standard error: of a bootstrap over the rows of
        each task, the same rows for both.
        """
        joined = [
            self._joined({n: _resampled(task, own[n]) for n, task in self.tasks.items()})
            for own in (before, after)
        ]
        sign = 1.0 if self.rising else -1.0
        gain = sign * (self.value(after) - self.value(before))
        # No gain is 0, not -0.
        return gain or 0.0, float((joined[1] - joined[0]).std())

    def _joined(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """The tasks' numbers as one, for each resample."""
        if self.metric == "relative":
            numbers = {
                name: self.experts[name] / value if _is_loss(self.tasks[name])
                else value / self.experts[name]
                for name, value in numbers.items()
            }  # fmt: skip
        every = torch.stack([*numbers.values()])
        if self.metric != "worst":
            return every.mean(dim=0)
        return every.amin(dim=0) if self.rising else every.amax(dim=0)


def rises(metric: str, tasks: Sequence[str]) -> bool:
    """Whether more is better, of tasks with these metrics."""
    return metric == "relative" or not LOSSES & {*tasks}


def check_metric(metric: str, tasks: Mapping[str, str]) -> None:
    """Errors for a metric that there is not, or that tasks with these metrics cannot have."""
    if metric not in METRICS:
        raise UnknownNameError(f"there is no metric {metric!r}", remedy=suggestion(metric, METRICS))
    losses = [name for name, own in tasks.items() if own in LOSSES]
    if metric != "relative" and 0 < len(losses) < len(tasks):
        raise ParameterError(
            f"perplexities ({', '.join(losses)}) and scores have no mean",
            remedy="compare each with its expert: --metric relative (metric=), or leave either "
            "out with --task (tasks=)",
        )


def _is_loss(task: HeldOutTask) -> bool:
    return task.metric in LOSSES


def _resampled(task: HeldOutTask, answers: Tensor) -> Tensor:
    """A task's number of each resample of its rows: [resamples]."""
    draws = resamples(task.prepared.count, derive_seed("tune", task.name))
    return torch.cat([_number(task, answers, rows) for rows in draws])


def _number(task: HeldOutTask, answers: Tensor, draws: Tensor | None = None) -> Tensor:
    """A task's number, of all rows or of each resample of them [resamples, rows]."""
    if _is_loss(task):
        losses, counts = (_drawn(column, draws) for column in answers.double().T)
        return losses.sum(dim=-1) / counts.sum(dim=-1) / task.scale
    scoring = scoring_of(task.metric, task.prepared, answers)
    number = scoring.score(_drawn(scoring.first, draws), _drawn(scoring.second, draws))
    return torch.as_tensor(number).double()


def _drawn(column: Tensor, draws: Tensor | None) -> Tensor:
    return column if draws is None else column[draws]
