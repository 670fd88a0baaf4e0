"""What methods, calibrators and recipes take: kinds of values that many share, each from any common
way to write it, and what the pipeline supplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from pydantic import BeforeValidator, Field
from typing_extensions import Doc

from magmerge.core.dtypes import parse_float_dtype, parse_size
from magmerge.core.lazy import Tensor

UNIT = 1 << 16
"""Entries to whose multiples layers are cut for a survey, which sums them up together.

A smaller layer is one piece, of which a survey may keep every entry.
"""

BOUND = 10.0
"""A factor above which the experts' task vectors may have cancelled, and rounding is what is left.
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


def _code(value: object) -> object:
    return parse_float_dtype(value) if isinstance(value, str) else value


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str | int) else value


def named(value: Any) -> Any:
    """A mapping from names: YAML reads a bare 1 as a number, and a name may be one."""
    if not isinstance(value, dict):
        return value
    return {str(name) if type(name) is int else name: entry for name, entry in value.items()}


def paths(value: Any) -> Any:
    """A mapping from names to paths, however they were given."""
    return {k: str(v) for k, v in named(value).items()} if isinstance(value, dict) else value


Switch = Annotated[Literal["on", "off"], BeforeValidator(switch)]
Bound = Annotated[
    Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["off"], BeforeValidator(switch)
]
"""A number from 1 on, or off."""
Dtype = Annotated[str | None, BeforeValidator(_code)]
"""safetensors' code of a format, from any common name of it."""
Size = Annotated[int, BeforeValidator(_bytes)]
"""Bytes, from a number or from 5GB, 5GiB and their kin."""
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
