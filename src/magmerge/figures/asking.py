"""What a user asks a figure to show, checked: merges, calibrations, values and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from magmerge import registry
from magmerge.errors import ParameterError
from magmerge.figures.document import Kind
from magmerge.figures.measuring import draws

CALIBRATIONS = ("wsc", "fsc", "dsc")
VALUES: dict[Kind, tuple[float, ...]] = {
    "samples": (1, 5, 10, 20),
    "lambda": (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "alpha": (0, 5, 10, 20),
}
"""Places of the horizontal axis: as in arXiv:2512.19320, and as far as its figures reach."""
SEEDS: dict[Kind, int] = {"samples": 5, "lambda": 3, "alpha": 3, "coefficients": 1}
GREATEST: dict[Kind, float] = {"samples": 1e6, "lambda": 1e3, "alpha": 1e6}
SPOKEN: dict[Kind, str] = {
    "samples": "number of samples",
    "lambda": "lambda",
    "alpha": "number of sensitive layers",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """Names are the registry's own; `values` ascend; `calibrations` are without "none"."""

    kind: Kind
    methods: tuple[str, ...]
    calibrations: tuple[str, ...]
    values: tuple[float, ...]
    samples: int
    seeds: int

    @property
    def drawn(self) -> bool:
        """Whether any calibration looks at samples."""
        return any(map(draws, self.calibrations))


def asked(
    kind: Kind,
    *,
    methods: Sequence[str],
    calibrate: Sequence[str] | None = None,
    values: Sequence[float] | None = None,
    samples: int = 8,
    seeds: int | None = None,
) -> Asked:
    """The same with defaults filled in; ParameterError or UnknownNameError for what cannot be."""
    names = tuple(dict.fromkeys(registry.methods.get(name).name for name in methods))
    if not names:
        raise ParameterError("no merge is named", remedy="name a method: --method ties")
    known = CALIBRATIONS[:2] if kind == "coefficients" else CALIBRATIONS
    calibrations = tuple(dict.fromkeys(calibrate if calibrate else known))
    for name in calibrations:
        draws(name)
    if kind == "samples" and not any(map(draws, calibrations)):
        raise ParameterError(
            f"{' and '.join(calibrations)} look at no samples",
            remedy="add --calibrate fsc or --calibrate dsc",
        )
    count = SEEDS.get(kind, 1) if seeds is None else seeds
    for number, what in ((count, "seeds"), (samples, "samples")):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ParameterError(f"{number} {what}", remedy=f"give one or more: --{what} 5")
    return Asked(kind, names, calibrations, _values(kind, values), samples, count)


def _values(kind: Kind, given: Sequence[float] | None) -> tuple[float, ...]:
    if kind not in VALUES:
        if given:
            raise ParameterError(
                f"a figure of {kind} has no values to go through", remedy="drop --values (values=)"
            )
        return ()
    values = VALUES[kind] if not given else tuple(given)
    for value in values:
        _check(kind, value)
    return tuple(sorted({float(value) for value in values}))


def _check(kind: Kind, value: float) -> None:
    least = 1.0 if kind == "samples" else 0.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= GREATEST[kind]:
        raise ParameterError(
            f"{value} is no {SPOKEN[kind]}",
            remedy=f"it is from {least:g} to {GREATEST[kind]:,.0f}",
        )
    if kind != "lambda" and value != int(value):
        raise ParameterError(f"{value} is no {SPOKEN[kind]}", remedy="give whole numbers")
