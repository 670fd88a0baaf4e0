"""Rows that a calibration did not see, and how near a model comes to its experts on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from magmerge.core.machine import Machine
from magmerge.data.halves import Halves
from magmerge.data.rows import Inputs
from magmerge.engine.job import Models, Work
from magmerge.live.calls import Listener, run
from magmerge.live.label_free import Answer, answer_of, compare, unknown, with_states
from magmerge.live.live_merge import LiveMerge, model_with
from magmerge.live.lockstep import in_lockstep
from magmerge.live.module_weights import at_rest


class HeldRows:
    """Rows kept aside of each expert's samples, and what base and experts make of them."""

    def __init__(
        self, calls: Mapping[int, Sequence[Inputs]], names: Sequence[str], machine: Machine
    ) -> None:
        self._calls, self._names, self._machine = calls, names, machine
        self._experts: dict[int, list[Answer | None]] = {}
        self._base: dict[int, list[Answer | None]] = {}

    def look(self, merge: LiveMerge, models: Models, twins: Mapping[str, str]) -> None:
        """Run each expert on its own rows, and the base on all, in the module of the merge."""
        with at_rest(merge.model):
            for expert, calls in self._calls.items():
                with model_with(merge, OneModel(models, expert, twins)):
                    self._experts[expert] = self._answers(merge.model, expert, calls)
            with model_with(merge, OneModel(models, None, twins)):
                for expert, calls in self._calls.items():
                    self._base[expert] = self._answers(merge.model, expert, calls)

    def measures(self, model: nn.Module) -> Tensor:
        """The measures of the model as it is, [rows, measures], expert after expert.

        NaN for a call of which a model makes neither logits nor features.
        """
        return torch.cat(
            [
                _compared(call, *three)
                for expert, calls in self._calls.items()
                for call, *three in zip(
                    calls,
                    self._answers(model, expert, calls),
                    self._experts[expert],
                    self._base[expert],
                    strict=True,
                )
            ]
        )

    def _answers(
        self, model: nn.Module, expert: int, calls: Sequence[Inputs]
    ) -> list[Answer | None]:
        """What the model makes of each call, each in one thread, as many at once as there are."""
        found: dict[int, Answer | None] = {}

        def one(number: int, call: Inputs, _: Listener) -> None:
            with torch.no_grad():
                output = run(model, with_states(model, call), self._names[expert])
            found[number] = answer_of(output, call)

        in_lockstep(
            [partial(one, *each) for each in enumerate(calls)], (), lambda *_: None, self._machine
        )
        return [found[number] for number in range(len(calls))]


def _compared(
    call: Inputs, own: Answer | None, expert: Answer | None, base: Answer | None
) -> Tensor:
    if own is None or expert is None or base is None:
        return unknown(call.rows)
    return compare(own, expert, base)


class OneModel:
    """The weights of an expert by its place, or of the base, each read when it is brought in.

    What an expert lacks, or has in another shape, is the base's.
    """

    def __init__(self, models: Models, expert: int | None, twins: Mapping[str, str]) -> None:
        self._models, self._twins = models, twins
        self._expert = None if expert is None else models.experts[expert]

    def bring(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors, in float32."""
        return {name: self._read(self._twins.get(name, name)) for name in names}

    def drop(self, names: Collection[str]) -> None:
        """Nothing is kept."""

    def _read(self, name: str) -> Tensor:
        base, expert = self._models.base, self._expert
        assert base is not None
        stored = (base if name in base.specs else self._models.layout).read(name)
        if not stored.is_floating_point():
            return stored
        weight, spec = stored.float(), None if expert is None else expert.specs.get(name)
        if expert is None or spec is None or spec.shape != tuple(weight.shape):
            return weight
        return expert.weight(name, weight)


def by_place(
    experts: Sequence[str], inputs: Mapping[str, Sequence[Inputs]]
) -> dict[int, list[Inputs]]:
    """Each expert's inputs by its place."""
    return {experts.index(name): list(calls) for name, calls in inputs.items()}


def held_rows(work: Work, halved: Halves) -> HeldRows:
    """The rows that were kept aside."""
    names = [expert.name for expert in work.models.experts]
    return HeldRows(by_place(names, halved.aside), names, work.job.machine)
