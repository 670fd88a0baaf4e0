"""A recipe with further experts: what becomes of the values that it has for each of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from magmerge.core import registry
from magmerge.core.errors import ParameterError
from magmerge.core.filters import values_of
from magmerge.core.models import named_by_path
from magmerge.core.recipe import Recipe
from magmerge.core.strengths import split_name, split_strength

WEIGHTS = "weights"


def experts_named(texts: Sequence[str]) -> dict[str, str]:
    """Experts by name as the command line has them, NAME=PATH or PATH, each with its strength.

    One without a name has that of its path; ParameterError where two have one.
    """
    pairs = [split_name(text) for text in texts]
    bare = named_by_path([split_strength(rest)[0] for name, rest in pairs if name is None])
    by_path = iter(bare)
    named: dict[str, str] = {}
    for name, rest in pairs:
        own = next(by_path) if name is None else name
        if own in named:
            raise ParameterError(
                f"two experts are named {own!r}",
                remedy=f"name one otherwise: --expert other={rest}",
            )
        named[own] = rest
    return named


def with_experts(recipe: Recipe, texts: Sequence[str], params: Mapping[str, Any]) -> Recipe:
    """The recipe with further experts, given as on the command line, and `params` in place of its
    own of these names.

    A strength is the expert's weight, beside those that the recipe has. ParameterError, with what
    to add, where the recipe says something of each expert that is not known of the new ones.
    """
    if recipe.method is None:
        raise ParameterError(
            "an expert is added to a recipe that merges none",
            remedy="give the recipe of a merge, or drop --expert",
        )
    pairs = {name: split_strength(rest) for name, rest in experts_named(texts).items()}
    taken = next((name for name in pairs if name in recipe.experts), None)
    if taken is not None:
        raise ParameterError(
            f"the recipe has an expert {taken!r} already",
            remedy=f"name the new one otherwise: --expert {taken}-2={pairs[taken][0]}",
        )
    for field, said in (("slices", recipe.slices), ("samples", recipe.samples)):
        if said:
            raise ParameterError(
                f"an expert is added, and the recipe's {field} say nothing of it",
                remedy=f"write the expert into a copy of the recipe, under experts: and {field}:",
            )
    own = dict(recipe.params)
    if any(strength is not None for _, strength in pairs.values()):
        more = [1.0 if strength is None else strength for _, strength in pairs.values()]
        own[WEIGHTS] = _longer(own.get(WEIGHTS) or [1.0] * len(recipe.experts), more)
    own |= params
    experts = {**recipe.experts, **{name: path for name, (path, _) in pairs.items()}}
    _check_lists(recipe.method, own, list(experts))
    return recipe.model_copy(update={"experts": experts, "params": own})


def _longer(weights: Any, more: Sequence[float]) -> Any:
    """The weights with those of further experts, where they vary in each item."""
    if not isinstance(weights[0], Mapping) or "value" not in weights[0]:
        return [*weights, *more]
    return [
        {**item, "value": None if item["value"] is None else [*item["value"], *more]}
        for item in weights
    ]


def _check_lists(method: str, params: Mapping[str, Any], experts: Sequence[str]) -> None:
    """ParameterError for lists with a value for each expert that have none for a new one."""
    for parameter in registry.methods.get(method).parameters:
        name, values = parameter.name, values_of(params.get(parameter.name))
        lists = [own for own in values if isinstance(own, list | tuple)]
        if not parameter.per_expert or all(len(own) == len(experts) for own in lists):
            continue
        remedy = f"give all {len(experts)} with --set '{name}=[...]' ({', '.join(experts)})"
        if name == WEIGHTS:
            remedy += f", or the new one's strength: --expert {experts[-1]}=PATH=0.5"
        plural = name if name == WEIGHTS else f"values of {name}"
        raise ParameterError(
            f"the recipe has {len(lists[0])} {plural}, and with the new one there are "
            f"{len(experts)} experts",
            remedy=remedy,
        )
