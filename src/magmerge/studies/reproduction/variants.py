"""The models that a pipeline compares: each merge, as it is, calibrated, and as a control."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from torch import Tensor

from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.types import LayerRecord

Space = Literal["none", "wsc", "fsc", "dsc", "global", "shuffled"]
SPACES: tuple[Space, ...] = get_args(Space)
PAPER: tuple[Space, ...] = ("none", "wsc", "fsc", "dsc")
DRAWN: frozenset[Space] = frozenset({"fsc", "dsc", "global", "shuffled"})
"""Spaces that depend on which samples are drawn."""
CONTROLS: frozenset[Space] = frozenset({"global", "shuffled"})
"""FSC's factors put elsewhere, to see what its spread over the layers does."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One model: a method, what is done to its merge, and with which draw of samples."""

    method: str
    space: Space
    draw: int | None = None

    @property
    def name(self) -> str:
        """As results name it: ties, ties+wsc, ties+fsc@0."""
        calibrated = "" if self.space == "none" else f"+{self.space}"
        return f"{self.method}{calibrated}" + ("" if self.draw is None else f"@{self.draw}")


def variants_of(methods: Sequence[str], spaces: Sequence[Space], draws: int) -> list[Variant]:
    """All of them, method by method."""
    variants = []
    for method in methods:
        for space in spaces:
            seeds = range(draws) if space in DRAWN else (None,)
            variants += [Variant(method, space, draw) for draw in seeds]
    return variants


def checked_spaces(names: Sequence[str]) -> tuple[Space, ...]:
    """Names of spaces, in the order of SPACES; UnknownNameError or ParameterError."""
    for name in names:
        if name not in SPACES:
            raise UnknownNameError(f"there is no space {name!r}", remedy=suggestion(name, SPACES))
    if not names:
        raise ParameterError("no space is named", remedy=f"choose among {', '.join(SPACES)}")
    return tuple(space for space in SPACES if space in names)


def control(
    space: Space,
    origin: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    records: Sequence[LayerRecord],
    seed: int,
) -> dict[str, Tensor]:
    """The merge with FSC's factors as one global factor, their mean, or shuffled among the layers.

    `origin` are the base's tensors, `plain` the merge's before calibration.
    """
    factors = {record.name: record.xi for record in records if record.calibrated_by}
    if space == "global":
        factors = dict.fromkeys(factors, statistics.mean(factors.values()) if factors else 1.0)
    else:
        values = list(factors.values())
        Random(seed).shuffle(values)
        factors = dict(zip(factors, values, strict=True))
    return {
        name: _scaled(origin[name], tensor, factors[name]) if name in factors else tensor
        for name, tensor in plain.items()
    }


def _scaled(origin: Tensor, merged: Tensor, factor: float) -> Tensor:
    change = merged.float() - origin.float()
    return (origin.float() + factor * change).to(merged.dtype)
