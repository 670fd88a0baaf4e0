"""What a recipe names, looked up: its method and calibrators with their functions' keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from magmerge import registry
from magmerge.recipe import Recipe, keywords
from magmerge.types import Calibrator, Method, Step


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a layer is calibrated: the calibrators in their order, each with its keywords."""

    calibrators: Sequence[tuple[Calibrator, Mapping[str, Any]]] = field(default=())
    gated: bool = True

    def of(self, step: Step) -> list[tuple[Calibrator, Mapping[str, Any]]]:
        """Those calibrators that act on this layer."""
        return [
            (calibrator, bound)
            for calibrator, bound in self.calibrators
            if step.calibrated and step.kind in calibrator.acts_on
        ]


@dataclass(frozen=True, slots=True)
class Bound:
    """What is done to every layer: a merge, or none where one exists already; a calibration."""

    method: Method | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    treatment: Treatment = field(default_factory=Treatment)


def bind(recipe: Recipe) -> Bound:
    """Look up what the recipe names."""
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    calibrators = [(registry.calibrators.get(c.method), c.params) for c in recipe.calibrate]
    treatment = Treatment(
        tuple((item, keywords(item, params)) for item, params in calibrators),
        gated=recipe.gate == "on",
    )
    return Bound(method, {} if method is None else keywords(method, recipe.params), treatment)
