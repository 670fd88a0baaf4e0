"""Surveys that sum up a whole layer piece by piece, and a survey of a layer that is here whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import UNIT
from magmerge.core.traits import Brackets, Noted, Survey

if TYPE_CHECKING:
    from magmerge.core.traits import MagnitudeSurvey

Measure = Callable[[int, Tensor, Mapping[str, Any]], Tensor]
"""From a run's first place, its entries [K, run] and what the survey before found to the float64
numbers that are added up."""


class LayerSums:
    """What `measure` gives for each run of UNIT entries, added up over the layer in float64.

    Runs are summed as they are, whatever the pieces they come in, and their sums are added without
    rounding. So the total depends neither on the pieces nor on their order. `keywords` makes of the
    total what the method's function gets. The sweeps of a survey `first` are made before, and what
    it finds goes to `measure`, and to the method's function too.
    """

    scope: Literal["layer"] = "layer"

    def __init__(
        self,
        measure: Measure,
        keywords: Callable[[Tensor], Mapping[str, Any]],
        first: Survey | None = None,
    ) -> None:
        self._measure, self._keywords, self._first = measure, keywords, first
        self.samples = 0 if first is None else first.samples
        self._name = ""
        self._parts: dict[int, list[float]] = {}
        self._shape: tuple[int, ...] = ()
        self._result: Mapping[str, Any] | None = None

    @property
    def passes(self) -> int:
        own = 1 if self._result is None else 0
        return own if self._first is None else own + self._first.passes

    def prepare(self, sample: Any) -> None:
        assert self._first is not None
        self._first.prepare(sample)

    def wants(self, name: str, start: int, stop: int) -> bool:
        before = self._before()
        return before is None or before.wants(name, start, stop)

    def observe(self, name: str, start: int, tensors: Any) -> None:
        """Measure the runs of one piece."""
        self._name, before = name, self._before()
        if before is not None:
            before.observe(name, start, tensors)
            return
        flat = tensors.reshape(len(tensors), -1)
        for first in range(0, max(1, flat.shape[1]), UNIT):
            run = flat[:, first : first + UNIT]
            total = self._measure(start + first, run, self._earlier())
            # As numbers: many small tensors, which outlive the pieces, would leave the memory of
            # the pieces in splinters.
            self._parts[start + first] = total.reshape(-1).tolist()
            self._shape = tuple(total.shape)

    @property
    def takes_arrays(self) -> bool:
        """Whether the survey before does; the sums are of tensors."""
        before = self._before()
        return before is not None and takes_arrays(before)

    @property
    def brackets(self) -> Brackets | None:
        """Those of the survey before; the sums need the tensors themselves."""
        before = self._before()
        return None if before is None else brackets_of(before)

    def note(self, noted: Noted) -> None:
        """What the survey before takes note of."""
        self._name, before = noted.name, self._before()
        cast("MagnitudeSurvey", before).note(noted)

    def conclude(self) -> None:
        """Add up all runs."""
        before = self._before()
        if before is not None:
            before.conclude()
            return
        columns = zip(*self._parts.values(), strict=True)
        totals = torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64)
        self._parts = {}
        self._result = self._keywords(totals.reshape(self._shape))

    def keywords(self, name: str) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """What the sums, and the survey before, give to the method's function."""
        assert self._result is not None
        return {**self._earlier(), **self._result}

    def _earlier(self) -> Mapping[str, Any]:
        return {} if self._first is None else self._first.keywords(self._name)

    def _before(self) -> Survey | None:
        """The survey before, while it has sweeps to make."""
        return self._first if self._first is not None and self._first.passes else None


class SurveyOfEach:
    """A survey for each expert, as one: where they are to find different things."""

    def __init__(self, surveys: Sequence[Survey]) -> None:
        self._surveys = surveys
        self.scope: Literal["layer", "model"] = surveys[0].scope
        self.samples = max(survey.samples for survey in surveys)

    @property
    def passes(self) -> int:
        return max(survey.passes for survey in self._surveys)

    def prepare(self, sample: Any) -> None:
        for survey, row in zip(self._surveys, sample, strict=True):
            survey.prepare(row[None])

    def wants(self, name: str, start: int, stop: int) -> bool:
        return any(survey.passes and survey.wants(name, start, stop) for survey in self._surveys)

    def observe(self, name: str, start: int, tensors: Any) -> None:
        for survey, tensor in zip(self._surveys, tensors, strict=True):
            if survey.passes and survey.wants(name, start, start + math.prod(tensor.shape)):
                survey.observe(name, start, tensor[None])

    @property
    def takes_arrays(self) -> bool:
        """Whether all do."""
        return all(map(takes_arrays, self._surveys))

    @property
    def brackets(self) -> Brackets | None:
        """The row of each expert; no ranks for one of which all is known."""
        rows: list[Sequence[tuple[float, float]]] = []
        for survey in self._surveys:
            own = brackets_of(survey) if survey.passes else [()]
            if own is None:
                return None
            rows += own
        return rows

    def note(self, noted: Noted) -> None:
        """What the survey of the expert `row` takes note of."""
        survey = self._surveys[noted.row]
        if survey.passes and survey.wants(*noted[:3]):
            cast("MagnitudeSurvey", survey).note(noted._replace(row=0))

    def conclude(self) -> None:
        for survey in self._surveys:
            if survey.passes:
                survey.conclude()

    def keywords(self, name: str) -> Mapping[str, Any]:
        """What each finds, put together as one survey of all would tell it."""
        every = [survey.keywords(name) for survey in self._surveys]
        return {key: _joined([found[key] for found in every]) for key in every[0]}


class SurveysApart(SurveyOfEach):
    """A survey for each expert, for tensors some of whose rows only some experts have: each sees
    the rows of one expert, and finds what is of all of them.
    """

    def of(self, voters: Sequence[int]) -> SurveysApart:
        """The surveys of some experts."""
        return SurveysApart([self._surveys[place] for place in voters])


def _joined(lists: Sequence[Any]) -> Any:
    """One list with the entries of all experts; of lists of lists, such as thresholds by rank, each
    of these.
    """
    if isinstance(lists[0][0], list):
        return [_joined(parts) for parts in zip(*lists, strict=True)]
    return [entry for part in lists for entry in part]


def brackets_of(survey: Survey) -> Brackets | None:
    """Between which magnitudes it is to be told all; None where it must see the tensors."""
    # By its name: to ask a protocol takes longer than a small tensor.
    brackets: Brackets | None = getattr(survey, "brackets", None)
    return brackets


def takes_arrays(survey: Survey) -> bool:
    """Whether what it is to observe may be a float32 array of numpy's too."""
    return bool(getattr(survey, "takes_arrays", False))


def surveyed(survey: Survey, tensors: Float[Tensor, "K *shape"]) -> Mapping[str, Any]:
    """What the survey finds in a layer that is here as a whole."""
    flat = tensors.reshape(len(tensors), -1)
    if survey.samples:
        survey.prepare(flat[:, :: max(1, flat.shape[1] // survey.samples)])
    while survey.passes:
        survey.observe("", 0, flat)
        survey.conclude()
    return survey.keywords("")
