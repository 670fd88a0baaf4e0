"""What parameters that vary by layer mean for a plan: each tensor's values, and what is refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from magmerge.core import registry
from magmerge.core.errors import ParameterError
from magmerge.core.filters import Filters, Item, items_of, named, varies
from magmerge.core.lazy import load
from magmerge.core.recipe import Recipe
from magmerge.core.traits import Method
from magmerge.core.types import Action, Choice, Step, TensorSpec
from magmerge.core.validation import keywords

FREE = frozenset({"lambda_"})
"""Keywords that a survey of the whole model cannot depend on: they only scale its result."""


class Varying:
    """The parameters of a recipe's method that vary, among the tensors of the result.

    ParameterError where one of their items names a stack of blocks that is none of the result's.
    """

    def __init__(self, recipe: Recipe, specs: Mapping[str, TensorSpec]) -> None:
        self._stored = {name: value for name, value in recipe.params.items() if varies(value)}
        self._items = {name: _read(name, value) for name, value in self._stored.items()}
        self._filters = Filters(())
        if self._items:
            every = [item for items in self._items.values() for item in _every(items)]
            layered = [item for item in every if item.layers is not None]
            ranges = load("magmerge.core.layer_ranges:Ranges")(specs, layered) if layered else None
            depths = load("magmerge.core.stacks:depths")(specs)
            self._filters = Filters(specs, depths, ranges)

    def at(self, name: str, action: Action) -> tuple[tuple[str, Any], ...]:
        """The values of those that act on a tensor, by public name."""
        return tuple(
            (parameter, self._filters.value_at(items, name))
            for parameter, items in self._items.items()
            if action == "merge" or (action == "mean" and parameter == "lambda")
        )

    def choices(self, steps: Sequence[Step]) -> tuple[Choice, ...]:
        """Each value that they can have, with how many of the tensors take it."""
        choices = []
        for parameter, items in self._items.items():
            names = [step.spec.name for step in steps if parameter in dict(step.params)]
            taken = [self._filters.item_for(items, name) for name in names]
            for item, told in zip(items, self._stored[parameter], strict=True):
                count = sum(own is item for own in taken)
                place = (item.layers, item.stack)
                choices.append(Choice(parameter, item.filter, told["value"], count, *place))
        return tuple(choices)

    def unused(self) -> list[str]:
        """Filters that no tensor takes."""
        faults = []
        for parameter, items in self._items.items():
            faults += self._filters.faults(parameter, items)
            for item in items:
                for number, own in enumerate(item.value if isinstance(item.value, list) else ()):
                    if isinstance(own, tuple):
                        shown = f"{named(parameter, item)} (expert {number + 1})"
                        faults += self._filters.faults(shown, own)
        return faults

    def torn(self, ties: Mapping[str, str]) -> list[str]:
        """Tensors in one memory that would take two values."""
        value_at = self._filters.value_at
        return [
            f"{parameter} varies between {name} and {twin}, which share their memory"
            for parameter, items in self._items.items()
            for name, twin in ties.items()
            if value_at(items, name) != value_at(items, twin)
        ]


def _read(parameter: str, value: Sequence[Any]) -> tuple[Item, ...]:
    """The items of a checked parameter, with those of single experts as tuples of such."""
    return tuple(
        item._replace(
            value=[_read(parameter, own) if varies(own) else own for own in item.value]
            if isinstance(item.value, list)
            else item.value
        )
        for item in items_of(parameter, value)
    )


def _every(items: Sequence[Item]) -> Iterator[Item]:
    """All items, those of single experts among them."""
    for item in items:
        yield item
        for own in item.value if isinstance(item.value, list) else ():
            if isinstance(own, tuple):
                yield from own


def check_varying(recipe: Recipe, steps: Sequence[Step], experts: int) -> None:
    """ParameterError where values that meet in one layer do not go together, or where a survey of
    the whole model depends on a parameter that varies.
    """
    if recipe.method is None or not any(step.params for step in steps):
        return
    method = registry.methods.get(recipe.method)
    seen: list[tuple[tuple[str, Any], ...]] = []
    for step in steps:
        if step.action != "merge" or step.params in seen:
            continue
        seen.append(step.params)
        bound = keywords(method, {**recipe.params, **dict(step.params)})
        if method.check is not None:
            method.check(**bound)
        if _looks_at_model(method, bound, step, experts):
            _refuse_surveyed(method, [name for name, _ in step.params])


def _looks_at_model(method: Method, bound: Mapping[str, Any], step: Step, experts: int) -> bool:
    if method.survey is None:
        return False
    seeds = {"seeds": [0] * experts} if method.random else {}
    entries = math.prod(step.spec.shape)
    survey = method.survey(entries=entries, experts=experts, unchanged=0, **seeds, **bound)
    return survey is not None and survey.scope == "model"


def _refuse_surveyed(method: Method, parameters: Iterable[str]) -> None:
    """ParameterError for the first of them that the method's survey takes by name."""
    assert method.survey is not None
    taken = frozenset(
        name
        for name, argument in inspect.signature(method.survey).parameters.items()
        if argument.kind is not argument.VAR_KEYWORD
    )
    known = {parameter.name: parameter.keyword for parameter in method.parameters}
    for name in parameters:
        if known[name] not in taken - FREE:
            continue
        alone = "scope" in known and name != "scope"
        raise ParameterError(
            f"{name} of {method.name} cannot vary by layer here: it decides about the whole model",
            remedy="look at each tensor by itself: --set scope=tensor"
            if alone
            else f"give {name} one value",
        )
