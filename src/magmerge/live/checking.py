"""Rows that a calibration did not see, and how near a model comes to its experts on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from magmerge.core.errors import ParameterError
from magmerge.core.machine import Machine
from magmerge.data.rows import Inputs
from magmerge.engine.job import Models, Work
from magmerge.live.calls import Listener, run
from magmerge.live.label_free import (
    Answer,
    alignment,
    answer_of,
    compare,
    pooled,
    unknown,
    with_states,
)
from magmerge.live.live_merge import LiveMerge, model_with
from magmerge.live.lockstep import in_lockstep
from magmerge.live.module_weights import at_rest
from magmerge.live.verdict import Seen, predicts_tokens, token_losses

Found = TypeVar("Found")


class NoRoomError(ParameterError):
    """What models put out for the rows kept aside does not fit into the memory."""


class HeldRows:
    """Rows kept aside of each expert's samples, and what base and experts make of them, in `room`
    bytes at most. `seen` has of each what a verdict is drawn from.
    """

    def __init__(
        self,
        calls: Mapping[int, Sequence[Inputs]],
        names: Sequence[str],
        machine: Machine,
        room: int,
    ) -> None:
        self._calls, self._names, self._machine, self._room = calls, names, machine, room
        self._experts: dict[int, list[Answer | None]] = {}
        self._base: dict[int, list[Answer | None]] = {}
        self._sizes: list[int] = []
        self._language = False
        self.seen: dict[str, Seen] = {}

    @property
    def left(self) -> int:
        """The bytes of the room that are still free."""
        return self._room - sum(self._sizes)

    def look(self, merge: LiveMerge, models: Models, twins: Mapping[str, str]) -> None:
        """Run each expert on its own rows, and the base on all, in the module of the merge.

        NoRoomError where what they make of them takes more than the room.
        """
        self._language = predicts_tokens(merge.model)
        experts, base = list[Seen](), list[Seen]()
        with at_rest(merge.model):
            for expert in self._calls:
                with model_with(merge, OneModel(models, expert, twins)):
                    own = self._each(merge.model, expert, partial(self._keep_expert, expert))
                self._experts[expert] = [answer for answer, _ in own]
                experts += [seen for _, seen in own]
            with model_with(merge, OneModel(models, None, twins)):
                for expert in self._calls:
                    own = self._each(merge.model, expert, partial(self._keep_base, expert))
                    self._base[expert] = [answer for answer, _ in own]
                    base += [seen for _, seen in own]
        self.seen = {"expert": _joined(experts), "base": _joined(base)}

    def look_at(self, model: nn.Module, name: str) -> Seen:
        """What is seen of the model as it is, expert after expert; kept under a name.

        NaN for a call of which a model makes neither logits nor features.
        """
        self.seen[name] = _joined(
            [
                seen
                for expert in self._calls
                for seen in self._each(model, expert, partial(self._compared, expert))
            ]
        )
        return self.seen[name]

    @property
    def has_logits(self) -> bool:
        """Whether an expert's outputs tell how likely it finds each class or token."""
        answers = (answer for own in self._experts.values() for answer in own)
        return any(answer is not None and answer.logits is not None for answer in answers)

    def alignments(self, model: nn.Module) -> list[float]:
        """How alike each expert and the model as it is see the expert's rows: NaN where an answer
        has no features.
        """
        found = []
        for expert in self._calls:
            own = self._each(model, expert, lambda _, answer: answer and pooled(answer))
            other = [answer and pooled(answer) for answer in self._experts[expert]]
            parts = [[part for part in side if part is not None] for side in (own, other)]
            whole = all(len(side) == len(own) > 0 for side in parts)
            found.append(alignment(*map(torch.cat, parts)) if whole else math.nan)
        return found

    def _compared(self, expert: int, number: int, own: Answer | None) -> Seen:
        return self._seen(expert, number, own, self._base[expert][number])

    def _seen(self, expert: int, number: int, own: Answer | None, base: Answer | None) -> Seen:
        """The measures of one call, and of a language model the losses of its tokens."""
        call, other = self._calls[expert][number], self._experts[expert][number]
        tokens = token_losses(own if self._language else None, call)
        if own is None or other is None or base is None:
            return Seen(unknown(call.rows), tokens)
        return Seen(compare(own, other, base), tokens)

    def _keep_expert(
        self, expert: int, number: int, own: Answer | None
    ) -> tuple[Answer | None, Seen]:
        call = self._calls[expert][number]
        tokens = token_losses(own if self._language else None, call)
        return self._kept(own), Seen(unknown(call.rows), tokens)

    def _keep_base(
        self, expert: int, number: int, own: Answer | None
    ) -> tuple[Answer | None, Seen]:
        # All of the base's answer that anything else is compared with is its features.
        kept = None if own is None else own._replace(logits=None)
        return self._kept(kept), self._seen(expert, number, own, own)

    def _kept(self, own: Answer | None) -> Answer | None:
        """The answer, where there is room for it."""
        # The others' threads add to the list; none of them changes what is in it.
        self._sizes.append(0 if own is None else own.size)
        if self.left < 0:
            raise NoRoomError(
                f"what base and experts put out for the samples that the check keeps aside "
                f"takes more than the {self._room / 1e9:.2f}GB of memory that are left",
                remedy="calibrate without the check (--set fsc.check=off), or from fewer "
                "--samples, or allow more --memory",
            )
        return own

    def _each(
        self, model: nn.Module, expert: int, look: Callable[[int, Answer | None], Found]
    ) -> list[Found]:
        """What is seen in the model's answer to each of the expert's calls, as soon as it is there;
        each in one thread, as many at once as there are.
        """
        calls, found = self._calls[expert], dict[int, Found]()

        def one(number: int, call: Inputs, _: Listener) -> None:
            with torch.no_grad():
                output = run(model, with_states(model, call), self._names[expert])
            found[number] = look(number, answer_of(output, call))

        in_lockstep(
            [partial(one, *each) for each in enumerate(calls)], (), lambda *_: None, self._machine
        )
        return [found[number] for number in range(len(calls))]


def _joined(seen: Sequence[Seen]) -> Seen:
    return Seen(*map(torch.cat, zip(*seen, strict=True)))


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


def held_rows(work: Work, aside: Mapping[str, Sequence[Inputs]]) -> HeldRows:
    """The rows that were kept aside, by the names of the experts."""
    names = [expert.name for expert in work.models.experts]
    return HeldRows(by_place(names, aside), names, work.job.machine, work.plan.room)
