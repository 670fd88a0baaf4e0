"""A plan with what people ask of it first: what is read, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from magmerge.core.recipe import Recipe
from magmerge.core.types import Plan
from magmerge.engine.trial import Trial


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """A model that is read: its role, what it is called, its tensors and their bytes. An adapter's
    are those that it changes, whole.
    """

    role: str
    source: str
    tensors: int
    size: int


@dataclass(frozen=True, slots=True)
class PlannedDocument:
    """A document of a recipe's file with its plan; None, with the reason, where it cannot be
    planned before others are done. `trial` is what was measured, if that was asked for.
    """

    recipe: Recipe
    plan: Plan | None
    inputs: tuple[PlannedInput, ...] = ()
    trial: Trial | None = None
    reason: str = ""
