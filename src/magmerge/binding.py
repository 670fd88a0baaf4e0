"""What a recipe names, looked up: its method and calibrators with their functions' keywords."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from magmerge import registry
from magmerge.recipe import Recipe, keywords
from magmerge.types import Calibrator, Method, Piece, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a layer is calibrated: the calibrators in their order, each with its keywords.

    `gains`, [K] or [K, rows] by tensor, are what was measured for calibrators that look at inputs;
    None before anything was.
    """

    calibrators: Sequence[tuple[Calibrator, Mapping[str, Any]]] = field(default=())
    gated: bool = True
    gains: Mapping[str, Tensor] | None = None

    def of(self, step: Step) -> list[tuple[Calibrator, Mapping[str, Any]]]:
        """Those calibrators that act on this layer, as far as it was measured."""
        return [
            (calibrator, bound)
            for calibrator, bound in self.calibrators
            if step.calibrated
            and step.kind in calibrator.acts_on
            and (
                calibrator.needs == "weights" or self.gains is None or step.spec.name in self.gains
            )
        ]

    def at(self, step: Step, piece: Piece) -> list[tuple[Calibrator, Mapping[str, Any]]]:
        """The same with the gains of this piece's rows among the keywords."""
        return [
            (calibrator, bound)
            if calibrator.needs == "weights"
            else (calibrator, {**bound, "gains": self._gains_at(step, piece)})
            for calibrator, bound in self.of(step)
        ]

    def asked_for(self, step: Step) -> tuple[float | None, ...]:
        """The mean factor that each expert's samples ask for, None where they tell nothing."""
        if self.gains is None or step.spec.name not in self.gains:
            return ()
        means = self.gains[step.spec.name].reshape(len(self.gains[step.spec.name]), -1).nanmean(1)
        return tuple(value if math.isfinite(value) else None for value in means.tolist())

    def weights_only(self) -> Treatment:
        """What of it can be done before anything is measured."""
        return replace(
            self, calibrators=[one for one in self.calibrators if one[0].needs == "weights"]
        )

    def inputs_only(self, gains: Mapping[str, Tensor]) -> Treatment:
        """What of it needs these gains."""
        wanted = [one for one in self.calibrators if one[0].needs == "inputs"]
        return replace(self, calibrators=wanted, gains=gains)

    def _gains_at(self, step: Step, piece: Piece) -> Tensor | None:
        if self.gains is None:
            return None
        gains = self.gains[step.spec.name]
        if gains.ndim == 1 or step.kind == "transposed":
            return gains
        row = math.prod(step.spec.shape[1:])
        rows = gains[:, piece.start // row : -(-piece.stop // row)]
        # A piece of one row's inner dimensions has one factor.
        return rows if piece.shape[0] == rows.shape[1] else rows[:, 0]


@dataclass(frozen=True, slots=True)
class Bound:
    """What is done to every layer: a merge, or none where one exists already; a calibration.

    `keywords` holds parameters that vary by layer as the recipe has them, so layers are merged with
    `keywords_at`.
    """

    method: Method | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    treatment: Treatment = field(default_factory=Treatment)

    def keywords_at(self, step: Step) -> Mapping[str, Any]:
        """The keywords of the method's function for one layer."""
        if self.method is None or not step.params:
            return self.keywords
        return {**self.keywords, **keywords(self.method, dict(step.params))}


def bind(recipe: Recipe) -> Bound:
    """Look up what the recipe names."""
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    calibrators = [(registry.calibrators.get(c.method), c.params) for c in recipe.calibrate]
    treatment = Treatment(
        tuple((item, keywords(item, params)) for item, params in calibrators),
        gated=recipe.gate == "on",
    )
    return Bound(method, {} if method is None else keywords(method, recipe.params), treatment)
