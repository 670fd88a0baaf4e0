"""Filters that take no tensor, dropped where a recipe's own program takes no offence at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from magmerge.core.filters import Filters, varies
from magmerge.core.recipe import Recipe
from magmerge.engine.job import Models


def without_idle_filters(recipe: Recipe, models: Models) -> Recipe:
    """The recipe without the items that no tensor of the result takes, and a note of each."""
    filters = Filters(models.layout.specs)
    params, notes = {}, list(recipe.notes)
    for name, value in recipe.params.items():
        dropped: list[str] = []
        params[name] = _used(value, filters, dropped)
        notes += [_note(name, filter_, filters) for filter_ in dict.fromkeys(dropped)]
    return recipe.model_copy(update={"params": params}).with_notes(notes)


def _note(parameter: str, filter_: str, filters: Filters) -> str:
    near = filters.near(filter_)
    hint = f": {near}" if near.startswith("did you mean") else ""
    return f"the filter {filter_!r} of {parameter} takes no tensor, and is left out{hint}"


def _used(value: Any, filters: Filters, dropped: list[str]) -> Any:
    """A parameter's value without idle items, those of single experts among them."""
    if not varies(value):
        if isinstance(value, list | tuple):
            return [_used(part, filters, dropped) for part in value]
        return value
    items = _items(value, filters, dropped)
    items = [{**item, "value": _used(item["value"], filters, dropped)} for item in items]
    alone = len(items) == 1 and set(items[0]) == {"value"}
    return items[0]["value"] if alone and _same_everywhere(items[0]["value"]) else items


def _items(
    items: Sequence[Mapping[str, Any]], filters: Filters, dropped: list[str]
) -> list[Mapping[str, Any]]:
    """The items that take a tensor which none before them takes; those for layers by names alone.

    The last one is for all tensors.
    """
    left = set(filters.names)
    layered = any("layers" in item for item in items)
    used = []
    for item in items:
        filter_ = item.get("filter")
        taken = {name for name in left if filters.takes(filter_, name)}
        if filter_ is not None and not taken:
            dropped.append(filter_)
            continue
        used.append(item)
        if not layered:
            left -= taken
    return used


def _same_everywhere(value: Any) -> bool:
    """Whether a value, or each of a list of such, is one for all tensors."""
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, Mapping | list) for part in parts)
