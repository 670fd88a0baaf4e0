"""The stages of a recipe, looked up once: its method, its calibrators, the rank of an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from magmerge.core import registry
from magmerge.core.filters import varies
from magmerge.core.lazy import Tensor
from magmerge.core.recipe import AdapterOutput, Recipe
from magmerge.core.traits import Calibrator, Method
from magmerge.core.types import Kind, Piece, Step
from magmerge.core.validation import keywords

ENERGY = 0.99
"""Share of the squared norm that rank "auto" keeps by default."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """The rank that each layer is cut off at: a number, "auto" (enough for the share `energy` of
    the squared norm), "exact" (all that the inputs span), or None (the largest of the inputs').
    """

    rank: int | Literal["auto", "exact"] | None
    energy: float

    def most(self, shape: tuple[int, ...], ranks: Sequence[int] = ()) -> int:
        """The rank that a layer of this shape has at most, from inputs of these ranks."""
        limit = min(shape[0], math.prod(shape[1:]))
        if self.rank in ("auto", "exact"):
            return min(limit, sum(ranks)) if ranks else limit
        return min(limit, max(ranks) if self.rank is None else int(self.rank))


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a layer is calibrated: the calibrators in their order, each with its keywords.

    `gains`, [K] or [K, rows] by tensor, are what was measured for calibrators that scale by it.
    Others solve for task vectors: from `sums`, [K, ...] by tensor, over a layer's inputs, to
    `deltas`. Each is None before it is known. `shares`: how much of the logarithm of its factors a
    tensor keeps, 1, 1/2 or 0, where a check has told; all of it elsewhere. `bound` is what no
    factor exceeds, all calibrators' together.
    """

    calibrators: Sequence[tuple[Calibrator, Mapping[str, Any]]] = field(default=())
    gated: bool = True
    bound: float = math.inf
    gains: Mapping[str, Tensor] | None = None
    sums: Mapping[str, Tensor] | None = None
    deltas: Mapping[str, Tensor] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def checked(self) -> bool:
        """Whether samples are kept aside to check what was measured."""
        return any(calibrator.checks(**bound) for calibrator, bound in self.calibrators)

    def of(self, step: Step) -> list[tuple[Calibrator, Mapping[str, Any]]]:
        """Those calibrators that act on this layer, as far as it was measured."""
        return [
            (calibrator, bound)
            for calibrator, bound in self.calibrators
            if step.calibrated
            and step.kind in calibrator.acts_on
            and self._is_measured(calibrator, step.spec.name)
        ]

    def _is_measured(self, calibrator: Calibrator, name: str) -> bool:
        """Whether what the calibrator needs is known of this layer, or may still become known."""
        if calibrator.needs == "weights":
            return True
        solved = self.deltas if self.deltas is not None else self.sums
        known = self.gains if calibrator.returns == "factor" else solved
        return known is None or name in known

    def at(self, step: Step, piece: Piece) -> list[tuple[Calibrator, Mapping[str, Any]]]:
        """The same with the gains of this piece's rows among the keywords."""
        return [
            (calibrator, {**bound, **self._supplied(calibrator, step, piece)})
            for calibrator, bound in self.of(step)
        ]

    def _supplied(self, calibrator: Calibrator, step: Step, piece: Piece) -> dict[str, Any]:
        """What was measured for this piece, by the keyword that the calibrator takes it as."""
        if calibrator.needs == "weights":
            return {}
        if calibrator.returns == "factor":
            return {"gains": self._gains_at(step, piece)}
        return {} if self.sums is None else {"sums": self.sums[step.spec.name]}

    def solved(self, calibrator: Calibrator, step: Step, piece: Piece) -> Tensor | None:
        """The piece of the task vector that the calibrator solved for while the model ran."""
        if calibrator.needs == "weights" or self.deltas is None:
            return None
        part = self.deltas[step.spec.name].reshape(-1)[piece.start : piece.stop]
        return part.reshape(piece.shape)

    def asked_for(self, step: Step) -> tuple[float | None, ...]:
        """The mean factor that each expert's samples ask for, None where they tell nothing."""
        if self.gains is None or step.spec.name not in self.gains:
            return ()
        means = self.gains[step.spec.name].reshape(len(self.gains[step.spec.name]), -1).nanmean(1)
        return tuple(value if math.isfinite(value) else None for value in means.tolist())

    def acts_on(self, kind: Kind) -> bool:
        """Whether any of the calibrators is defined for this kind of layer."""
        return any(kind in calibrator.acts_on for calibrator, _ in self.calibrators)

    def weights_only(self) -> Treatment:
        """What of it can be done before anything is measured."""
        return replace(
            self, calibrators=[part for part in self.calibrators if part[0].needs == "weights"]
        )

    def inputs_only(
        self, gains: Mapping[str, Tensor], sums: Mapping[str, Tensor] | None = None
    ) -> Treatment:
        """What of it needs these gains or sums."""
        measured = [part for part in self.calibrators if part[0].needs == "inputs"]
        return replace(self, calibrators=measured, gains=gains, sums=sums)

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
class Stages:
    """What is done to every layer, in this order: a merge, or one model is taken as it is; the
    calibration; and for an adapter the truncation to a low rank.

    `keywords` holds parameters that vary by layer as the recipe has them, so layers are merged with
    `keywords_at`. An adapter without a base is truncated before it is calibrated, so that its
    magnitude is that of what is written.
    """

    method: Method | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    treatment: Treatment = field(default_factory=Treatment)
    truncation: Truncation | None = None

    def keywords_at(self, step: Step) -> Mapping[str, Any]:
        """The keywords of the method's function for one layer."""
        if self.method is None or not step.params:
            return self.keywords
        return {**self.keywords, **keywords(self.method, dict(step.params))}

    def in_factors(self, step: Step) -> bool:
        """Whether the layer's merge is the same in coordinates of its low-rank task vectors."""
        return step.action == "mean" or rotates(self.method, self.keywords_at(step))

    @property
    def always_in_factors(self) -> bool:
        """Whether it is so for every layer, also where parameters vary."""
        decides = self.method is not None and callable(self.method.rotates)
        several = decides and any(map(varies, self.keywords.values()))
        return rotates(self.method, self.keywords) and not several


def rotates(method: Method | None, bound: Mapping[str, Any]) -> bool:
    """Whether the method, with these keywords, works on coordinates."""
    if method is None:
        return False
    return method.rotates(**bound) if callable(method.rotates) else method.rotates


def bind(recipe: Recipe) -> Stages:
    """Look up what the recipe names."""
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    calibrators = [(registry.calibrators.get(c.method), c.params) for c in recipe.calibrate]
    treatment = Treatment(
        tuple((item, keywords(item, params)) for item, params in calibrators),
        gated=recipe.gate == "on",
        bound=math.inf if recipe.bound == "off" else recipe.bound,
    )
    output = recipe.output
    truncation = None
    if isinstance(output, AdapterOutput):
        truncation = Truncation(output.rank, output.energy or ENERGY)
    bound = {} if method is None else keywords(method, recipe.params)
    return Stages(method, bound, treatment, truncation)
