"""What a figure shows and how its models are made: defaults filled in, mistakes refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from magmerge.core import registry
from magmerge.core.errors import ParameterError
from magmerge.core.machine import Machine
from magmerge.core.validation import COMPOSED, check_calibrations
from magmerge.pipeline.merge import Gate
from magmerge.studies.figures.document import FigureKind

CALIBRATIONS = ("wsc", "fsc", "dsc")
VALUES: dict[FigureKind, tuple[float, ...]] = {
    "samples": (1, 5, 10, 20),
    "lambda": (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "alpha": (0, 5, 10, 20),
}
"""Places of the horizontal axis: as in arXiv:2512.19320, and as far as its figures reach."""
SEEDS: dict[FigureKind, int] = {"samples": 5, "lambda": 3, "alpha": 3}
LIMITS: dict[FigureKind, tuple[str, float, float]] = {
    "samples": ("number of samples", 1, 1e6),
    "lambda": ("lambda", 0, 1e3),
    "alpha": ("number of sensitive layers", 0, 1e6),
}


class LayerOrder(NamedTuple):
    """Layers from the most sensitive one on, as far as they do harm, and how many were ranked."""

    layers: tuple[str, ...]
    ranked: int


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure; `with_defaults` gives it its defaults.

    `params` are those of methods and calibrators by name; `dtype` is that of the measured model's
    forward passes. `order` is the sensitive layers' order where it is given; `alpha` and `mode` are
    those of a ranking that is computed.
    """

    kind: FigureKind
    methods: tuple[str, ...] = ("task_arithmetic",)
    calibrations: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    samples: int = 8
    seeds: int | None = None
    split: str = "test"
    tasks: tuple[str, ...] | None = None
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gate: Gate = "on"
    sensitive: tuple[str, ...] = ()
    dtype: str | None = None
    machine: Machine = field(default_factory=Machine)
    order: LayerOrder | None = None
    alpha: int = 10
    mode: str = "exact"

    @property
    def needs_samples(self) -> bool:
        """Whether any calibration looks at samples."""
        return any(map(draws, self.calibrations))

    @property
    def draws(self) -> range:
        """The seeds."""
        return range(self.seeds or 1)


def draws(calibration: str) -> bool:
    """Whether a calibration looks at samples; UnknownNameError where there is none of the name."""
    parts = check_calibrations(calibration)
    return any(registry.calibrators.get(part.method).needs == "inputs" for part in parts)


def with_defaults(request: FigureSpec) -> FigureSpec:
    """The same with the registry's names, in order; MagmergeError's children for mistakes."""
    kind = request.kind
    methods = tuple(dict.fromkeys(registry.methods.get(name).name for name in request.methods))
    if not methods:
        raise ParameterError("no merge is named", remedy="name a method: --method ties")
    known = CALIBRATIONS[:2] if kind == "coefficients" else CALIBRATIONS
    calibrations = tuple(dict.fromkeys(request.calibrations or known))
    hungry = [name for name in calibrations if draws(name)]
    seeds = SEEDS.get(kind, 1) if request.seeds is None else request.seeds
    full = replace(
        request,
        methods=methods,
        calibrations=calibrations,
        values=_values(kind, request.values),
        seeds=seeds,
        params=_by_own_name(request.params),
    )
    if not hungry and kind == "samples":
        raise ParameterError(
            f"{' and '.join(calibrations)} look at no samples",
            remedy="add --calibrate fsc or --calibrate dsc",
        )
    for number, name in ((seeds, "seeds"), (full.samples, "samples"), (full.alpha, "alpha")):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ParameterError(f"{name} is {number}", remedy=f"give one or more: --{name} 5")
    if full.gate not in ("on", "off"):
        raise ParameterError(f"the gate is {full.gate!r}", remedy="it is on or off")
    if kind == "alpha" and full.gate == "off":
        raise ParameterError(
            "without a gate it does not matter which layers are sensitive",
            remedy="leave the gate on for a figure of alpha",
        )
    return full


def _values(kind: FigureKind, values: tuple[float, ...]) -> tuple[float, ...]:
    if kind not in VALUES:
        if values:
            raise ParameterError(
                f"a figure of {kind} has no values to go through", remedy="drop --values (values=)"
            )
        return ()
    name, least, greatest = LIMITS[kind]
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= greatest:
            raise ParameterError(
                f"{value} is no {name}", remedy=f"it is from {least:g} to {greatest:,.0f}"
            )
        if kind != "lambda" and value != int(value):
            raise ParameterError(f"{value} is no {name}", remedy="give whole numbers")
    return tuple(sorted({float(value) for value in values or VALUES[kind]}))


def _by_own_name(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parameters by the names that the registry has for methods; calibrators have no other."""
    calibrators = {*COMPOSED, *(calibrator.name for calibrator in registry.calibrators)}
    return {
        name if name in calibrators else registry.methods.get(name).name: dict(own)
        for name, own in params.items()
    }
