"""The method of one layer: its function, and all keywords but those of a piece."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from magmerge.core import registry
from magmerge.core.lazy import Tensor
from magmerge.core.traits import Method, Survey
from magmerge.core.types import UNCHANGED, Step
from magmerge.engine.job import Work
from magmerge.linalg.draws import derive_seed

Keywords = Mapping[str, Any]


def method_for(work: Work, step: Step, survey: Keywords | None) -> tuple[Method, dict[str, Any]]:
    """The method for this layer, and its function's keywords with what its survey tells."""
    if step.action == "average":
        return registry.methods.get("average"), {}
    assert work.stages.method is not None
    method, bound = work.stages.method, _keywords(work, step)
    if step.action == "mean":
        return registry.methods.get("task_arithmetic"), {
            "lambda_": bound.get("lambda_", 1.0),
            "normalize": True,
        }
    if method.random:
        bound["seeds"] = _seeds(work, step)
    return method, {**bound, **(survey or {})}


def of_piece(method: Method, bound: Keywords, start: int, base: Tensor) -> dict[str, Any]:
    """The keywords with what depends on the piece, as far as the method asks for it."""
    own = {"start": start, "base": base}
    return {**bound, **{name: own[name] for name in own if name in method.supplied}}


def _keywords(work: Work, step: Step) -> dict[str, Any]:
    """The method's keywords; of lists with a value for each expert those of the voters."""
    bound, method = dict(work.stages.keywords_at(step)), work.stages.method
    if step.voters is None or method is None:
        return bound
    for keyword in (parameter.keyword for parameter in method.parameters if parameter.per_expert):
        values = bound.get(keyword)
        if isinstance(values, Sequence):
            bound[keyword] = [values[place] for place in step.voters]
    return bound


def _seeds(work: Work, step: Step) -> list[int]:
    """One for each voter."""
    seed, name = work.job.recipe.seed, step.spec.name
    return [derive_seed(seed, name, place) for place in work.voters(step)]


def survey_for(work: Work, step: Step) -> Survey | None:
    """The method's survey with these parameters, for this layer."""
    method = work.stages.method
    if method is None or method.survey is None:
        return None
    bound = _keywords(work, step)
    bound["experts"] = len(work.voters(step))
    bound["unchanged"] = sum(
        math.prod(other.spec.shape) for other in work.plan.steps if other.reason == UNCHANGED
    )
    if method.random:
        bound["seeds"] = _seeds(work, step)
    return method.survey(entries=math.prod(step.spec.shape), **bound)
