"""Which expert hurts: the merge without each of them, on the others' samples, without labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from magmerge.core.errors import CheckpointError, MagmergeError, MagmergeWarning, ParameterError
from magmerge.core.lazy import Tabular
from magmerge.core.machine import shown_progress
from magmerge.core.tables import Table
from magmerge.data.inputs import calibration_inputs
from magmerge.data.rows import Inputs
from magmerge.engine.opening import experts_by_name
from magmerge.engine.samples import by_expert, options_of
from magmerge.evaluation.entries import ModelEntry
from magmerge.evaluation.live_model import (
    Hardware,
    LiveModel,
    Measurable,
    evaluating,
    open_weights,
)
from magmerge.evaluation.runner import forward
from magmerge.live.label_free import Answer, answer_of, compare, with_states
from magmerge.live.share_search import losses_of, measure_of
from magmerge.live.verdict import ERRORS
from magmerge.pipeline.merge import merge

WORDS = {"kl": "divergence (KL) from", "cosine": "1 - cosine of changes to"}

HURTS = "hurts the others"


class Left(NamedTuple):
    """What came of leaving one expert out: the mean loss on the other experts' samples with all
    experts and without this one, the standard error of the difference (NaN where fewer than two
    rows tell it), and on its own samples.
    """

    expert: str
    others: float
    without: float
    error: float
    own: float
    own_without: float

    @property
    def state(self) -> str:
        """Whether it hurts the others, helps them, or neither by more than chance."""
        if not self.known or abs(self.difference) <= ERRORS * self.error:
            return ""
        return HURTS if self.difference > 0 else "helps the others"

    @property
    def difference(self) -> float:
        """By how much the others are farther from their experts with it than without."""
        return self.others - self.without

    @property
    def known(self) -> bool:
        """Whether the samples tell a difference, and its error."""
        return math.isfinite(self.difference) and math.isfinite(self.error)


@dataclass(frozen=True, slots=True)
class Ablation(Tabular):
    """A merge without each of its experts in turn, by how far the rest is from its experts."""

    tabled: ClassVar[str] = "magmerge.evaluation.ablation:ablation_table"
    method: str
    measure: str
    rows: Mapping[str, int]
    left: tuple[Left, ...]

    @property
    def text(self) -> str:
        """Which expert hurts the others most."""
        if not any(one.known for one in self.left):
            return "whether an expert hurts the others is not known: too few rows tell it"
        hurting = [one for one in self.left if one.state == HURTS]
        if not hurting:
            return "no expert clearly hurts the others on these samples"
        worst = max(hurting, key=lambda one: one.difference)
        every = len(hurting) == len(self.left)
        return (
            f"{'each expert takes from the others; ' if every else ''}{worst.expert} hurts the "
            f"others most: without it their {WORDS[self.measure]} their "
            f"experts is {worst.without:.3g}, with it {worst.others:.3g}"
        )

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        left = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in {**one._asdict(), "state": one.state}.items()
            }
            for one in self.left
        ]
        return {**asdict(self), "left": left, "text": self.text}


def ablation_table(found: Ablation) -> Table:
    """A row for each expert that was left out, the most harmful first, the unknown last."""
    ranked = sorted(
        found.left,
        key=lambda one: -one.difference if math.isfinite(one.difference) else math.inf,
    )
    rows = tuple(
        (one.expert, one.others, one.without, one.error, one.own, one.own_without, one.state)
        for one in ranked
    )
    what = WORDS[found.measure]
    columns = ("left out", "others, with it", "others, without", "error", "itself, with it")
    title = f"{found.method}: {what} the experts; {found.text}"
    return Table(title, (*columns, "itself, without", ""), rows)


def ablate(
    *,
    base: str | Path,
    experts: Sequence[Any] | Mapping[str, Any],
    data: Any,
    method: str = "task_arithmetic",
    params: Mapping[str, Any] | None = None,
    samples: Any = 8,
    seed: int = 0,
    **machine: Any,
) -> Ablation:
    """Merge without each expert in turn, and see how near the others come to their experts.

    `data` are unlabelled samples of each expert's task, as in `merge`; `base` is a folder with
    config.json. Distances are the divergence of outputs, without outputs one less the cosine of
    changes in features. `machine` are fields of `Hardware`. Raises MagmergeError's children.
    """
    members: dict[str, Any] = dict(experts_by_name(experts))
    folder = Path(base)
    if len(members) < 2:
        raise ParameterError("there is one expert only", remedy="give two or more with --expert")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "there is no config.json, so it cannot be told what model this is", source=folder,
            remedy="give the base as a folder that transformers can load",
        )  # fmt: skip
    progress = machine.pop("progress", None) or shown_progress()
    hardware = Hardware(**machine, progress=progress)
    sources = by_expert(data, [*members])
    inputs = calibration_inputs(sources, folder=folder, options=options_of(samples, seed))
    bench = _Bench(folder, inputs, hardware, 2 * len(members) + 2)
    bench.look(None, base, members)
    for name, expert in members.items():
        bench.look(name, expert, [name])
    merged = partial(
        merge, base=base, method=method, params=params, seed=seed, progress=_silent,
        threads=hardware.threads, memory=hardware.memory,
    )  # fmt: skip
    whole = bench.measures(merged(experts=members))
    judge = measure_of(torch.cat([*whole.values()]))
    left = []
    for name in members:
        others = {other: own for other, own in members.items() if other != name}
        with warnings.catch_warnings():
            # The merge of all has told them.
            warnings.simplefilter("ignore", MagmergeWarning)
            rest = merged(experts=others)
        left.append(_left(name, whole, bench.measures(rest), judge))
    rows = {name: sum(call.rows for call in calls) for name, calls in inputs.items()}
    return Ablation(method, judge, rows, tuple(left))


def _silent(*_: object) -> None:
    """The merges of an ablation show no bars of their own."""


def _left(name: str, whole: Mapping[str, Tensor], rest: Mapping[str, Tensor], judge: str) -> Left:
    """What leaving this expert out came to, over the rows that both merges tell something of."""
    others = [other for other in whole if other != name]
    before, after = (
        losses_of(torch.cat([rows[other] for other in others]), judge) for rows in (whole, rest)
    )
    known = before.isfinite() & after.isfinite()
    difference = (before - after)[known].double()
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else math.nan
    own, own_without = (float(losses_of(rows[name], judge).nanmean()) for rows in (whole, rest))
    with_it, without = (float(losses[known].mean()) for losses in (before, after))
    return Left(name, with_it, without, error, own, own_without)


class _Bench:
    """One live module, in which all models run in turn on each expert's samples."""

    def __init__(
        self, folder: Path, inputs: Mapping[str, Sequence[Inputs]], machine: Hardware, total: int
    ) -> None:
        self._folder, self._inputs, self._machine = folder, inputs, machine
        self._live, self._total, self._done = (
            LiveModel(ModelEntry.model_validate({}), folder),
            total,
            0,
        )
        self._answers: dict[tuple[str | None, str], list[Answer]] = {}

    def look(
        self, expert: str | None, model: Measurable, names: Sequence[str] | Mapping[str, Any]
    ) -> None:
        """Keep what an expert, or under None the base, makes of these experts' samples."""
        module = self._put(model)
        for name in names:
            self._answers[expert, name] = [
                self._answer(module, call) for call in self._inputs[name]
            ]

    def measures(self, model: Measurable) -> dict[str, Tensor]:
        """The label-free measures of a model on each expert's samples, [rows, measures]."""
        module = self._put(model)
        return {
            name: torch.cat(
                [
                    compare(self._answer(module, call), expert, base)
                    for call, expert, base in zip(
                        calls, self._answers[name, name], self._answers[None, name], strict=True
                    )
                ]
            )
            for name, calls in self._inputs.items()
        }

    def _put(self, model: Measurable) -> nn.Module:
        module = self._live.put(open_weights(model, self._folder), self._machine)
        self._done += 1
        self._machine.tell("leaving out", self._done, self._total)
        return module

    def _answer(self, module: nn.Module, call: Inputs) -> Answer:
        with torch.inference_mode(), evaluating(module):
            answer = answer_of(forward(module, with_states(module, call)), call)
        if answer is None:
            raise MagmergeError(
                "its output has neither logits nor features",
                source=type(module).__name__,
                remedy="leave experts out by hand, and measure with magmerge evaluate",
            )
        return answer
