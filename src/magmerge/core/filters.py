"""Parameters that vary by layer: items of a filter and a value, and which item a tensor takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

from magmerge.core.components import COMPONENTS, component_of, components_of, layout_of
from magmerge.core.errors import ParameterError, suggestion
from magmerge.core.lazy import load

GRADIENT = "gradient"
"""The key of a value that runs through the depth of the model: its points."""
FORM = (
    'write items like {"filter": "vae", "value": 0}, and last {"value": 0.3} for all other '
    "tensors; on the command line: --set 'NAME@vae=0' --set NAME=0.3"
)


_BLOCK = re.compile(
    r"BASE|MID|(?:IN|OUT|D|S)[0-9]{2}|INS|IND|INALL|MIDD|OUTD|OUTS|OUTALL", re.ASCII
)
"""Names of blocks, and of presets of them."""


class Item(NamedTuple):
    """A value, and which tensors take it: those that no item before it takes; None is all."""

    filter: str | None
    value: Any


def varies(value: object) -> bool:
    """Whether a parameter's value is a list of items, not a value for all tensors."""
    return isinstance(value, list | tuple) and any(
        isinstance(item, Mapping) and points_of(item) is None for item in value
    )


def values_of(value: Any) -> list[Any]:
    """The values that a parameter has in one layer or another."""
    return [item["value"] for item in value] if varies(value) else [value]


def items_of(parameter: str, value: Sequence[Any]) -> list[Item]:
    """The items that a parameter is given as; ParameterError where they are not of their form.

    A filter of "*" is none. Only the last item may be without a filter: no other one after it
    would ever be taken.
    """
    items = []
    for entry in value:
        if not isinstance(entry, Mapping) or "value" not in entry:
            raise ParameterError(f"{parameter}: {entry!r} is no item with a value", remedy=FORM)
        unknown = [key for key in entry if key not in ("filter", "value")]
        if unknown:
            raise ParameterError(f"{parameter}: an item with {unknown[0]!r}", remedy=FORM)
        filter_ = entry.get("filter")
        if filter_ is not None and (not isinstance(filter_, str) or not filter_.strip()):
            raise ParameterError(f"{parameter}: the filter {filter_!r} is no name", remedy=FORM)
        items.append(Item(None if filter_ == "*" else filter_, entry["value"]))
    for item in items[:-1]:
        if item.filter is None:
            raise ParameterError(
                f"{parameter}: an item for all tensors comes before others, which none can take",
                remedy="put the item without a filter last",
            )
    filters = [item.filter for item in items]
    twice = next((filter_ for filter_ in filters if filters.count(filter_) > 1), None)
    if twice is not None:
        raise ParameterError(
            f"{parameter}@{twice} is given twice", remedy="give each filter one value"
        )
    return items


def stored(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Items as a recipe holds them."""
    return [
        {"value": item.value}
        if item.filter is None
        else {"filter": item.filter, "value": item.value}
        for item in items
    ]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name is one of `patterns` (shell wildcards: * ? [...])."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def patterns(text: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several; ParameterError where it is neither."""
    several = (text,) if isinstance(text, str) else text
    if not isinstance(several, Iterable) or not all(isinstance(p, str) for p in several):
        remedy = "give a name with wildcards, or a list of such: ['*.bias', 'lm_head.*']"
        raise ParameterError(f"{text!r} is no pattern", remedy=remedy)
    return tuple(several)


class Filters:
    """What filters mean among a model's tensors.

    Where one file holds the parts of a diffusion model, a part's name (unet, vae) stands for it,
    and in an image model a block's (IN04, MID, OUT08, BASE; D07 and S21 in Flux) or that of a
    preset of blocks (OUTALL). Else a filter with * or ? is a shell pattern for whole names, and any
    other a part of a name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.layout = layout_of(self.names)
        present = components_of(self.names)
        self.components = tuple(component for component in COMPONENTS if present[component])

    @cached_property
    def blocks(self) -> Any:
        """The model's blocks (`core.blocks.Blocks`); None where it has none by these names."""
        blocks = load("magmerge.core.blocks:Blocks")(self.names)
        return blocks if blocks.present - {"BASE"} else None

    def takes(self, filter_: str | None, name: str) -> bool:
        """Whether the filter matches the tensor; None matches all."""
        if filter_ is None:
            return True
        if self.layout is not None and filter_ in COMPONENTS:
            return component_of(name, self.layout) == filter_
        if _BLOCK.fullmatch(filter_) and self.blocks is not None:
            taken: bool = self.blocks.takes(filter_, name)
            return taken
        if "*" in filter_ or "?" in filter_:
            return fnmatchcase(name, filter_)
        return filter_ in name

    def item_for(self, items: Sequence[Item], name: str) -> Item:
        """The first item that takes the tensor; the last of `items` takes all."""
        return next(item for item in items if self.takes(item.filter, name))

    def faults(self, parameter: str, items: Sequence[Item]) -> list[str]:
        """Filters that match no tensor, or only those that others before them take."""
        taken = {self.item_for(items, name).filter for name in self.names}
        faults = []
        for item in items:
            if item.filter is None or item.filter in taken:
                continue
            shown = f"the filter {item.filter!r} of {parameter}"
            if any(self.takes(item.filter, name) for name in self.names):
                faults.append(f"{shown} is never used: filters before it take all its tensors")
            else:
                faults.append(f"{shown} fits no tensor: {self._near(item.filter)}")
        return faults

    def _near(self, filter_: str) -> str:
        parts = {part for name in self.names for part in name.split(".") if not part.isdigit()}
        near = suggestion(filter_, {*self.components, *parts})
        if near.startswith("did you mean") and filter_ not in parts:
            return near
        if _BLOCK.fullmatch(filter_) and self.blocks is not None:
            return f"this model has the blocks {', '.join(sorted(self.blocks.present))}"
        if self.components:
            return f"this model has the components {', '.join(self.components)}"
        return "it is in no name, and this is no diffusion model of several components"


def points_of(value: object) -> Sequence[Any] | None:
    """The points of a gradient as a recipe holds it, {"gradient": [0, 0.5, 1]}; else None."""
    if (
        isinstance(value, Mapping)
        and set(value) == {GRADIENT}
        and isinstance(value[GRADIENT], list | tuple)
    ):
        return value[GRADIENT] or None
    return None


def settled(value: Any, depth: float) -> Any:
    """The value at a depth from 0 to 1, between the two nearest points; of several ones each."""
    if isinstance(value, list | tuple):
        return [settled(part, depth) for part in value]
    points = points_of(value)
    if points is None:
        return value
    place = depth * (len(points) - 1)
    left = min(int(place), max(len(points) - 2, 0))
    share = place - left
    if not share:
        return float(points[left])
    return float(points[left]) * (1 - share) + float(points[left + 1]) * share
