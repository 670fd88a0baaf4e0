"""What methods and calibrators take: parameters that many share, and what the pipeline supplies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from annotated_types import Interval
from pydantic import BeforeValidator
from typing_extensions import Doc

from magmerge.core.lazy import Tensor

UNIT = 1 << 16
"""Entries to whose multiples layers are cut for a survey, which sums them up together.

A smaller layer is one piece, of which a survey may keep every entry.
"""


@dataclass(frozen=True, slots=True)
class Supplied:
    """Marks a parameter that the pipeline fills in, not the user."""


@dataclass(frozen=True, slots=True)
class PerExpert:
    """Marks a parameter that has a value for each expert where it is a list, in their order.

    `default`: that of an expert in tensors that none of its items takes, None: the parameter's.
    """

    default: float | None = None


def switch(value: object) -> object:
    """On or off as a word: YAML reads the bare words as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["on", "off"], BeforeValidator(switch)]
Share = Annotated[float, Interval(gt=0, le=1)]
Chance = Annotated[float, Interval(ge=0, lt=1)]
Density = Annotated[
    Share | Sequence[Share],
    PerExpert(),
    Doc("share of each task vector's entries that is kept, or one for each expert"),
]
Lambda = Annotated[float, Doc("factor on the merged task vector")]
Probability = Annotated[
    Chance | Sequence[Chance],
    PerExpert(),
    Doc("chance that an entry is dropped, or one for each expert"),
]
Weights = Annotated[
    Sequence[float] | None,
    PerExpert(1.0),
    Doc("one weight per expert, in their order; all equal if not given"),
]
Seeds = Annotated[Sequence[int] | None, Supplied()]
Start = Annotated[int, Supplied()]
"""Where in its layer the piece begins that a method is given, in entries."""


class SolvedWeight(NamedTuple):
    """A layer's weight as a matrix [outputs, inputs]: the base's, the experts' task vectors of it
    [K, outputs, inputs], and the one that was solved for.
    """

    base: Tensor
    deltas: Tensor
    delta: Tensor


class Threshold(NamedTuple):
    """The value that parts the largest entries of a layer from the rest.

    Entries above `value` are among them, and of those equal to it the ones before entry `until`.
    With `rounded` they are compared as float32, in which format the value was found.
    """

    value: float
    until: int
    rounded: bool = False


Thresholds = Annotated[Sequence[Sequence[Threshold]] | None, Supplied()]
