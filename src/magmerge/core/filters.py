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
    """A value, and which tensors take it: those that no item before it takes; None is all.

    `layers` are blocks of the result, from the first to before the last, in the `stack` of this
    name, or without one in the main stack.
    """

    filter: str | None
    value: Any
    layers: tuple[int, int] | None = None
    stack: str | None = None

    @property
    def everywhere(self) -> bool:
        """Whether it takes all tensors that no item before it takes."""
        return self.filter is None and self.layers is None


def varies(value: object) -> bool:
    """Whether a parameter's value is a list of items, not a value for all tensors."""
    return isinstance(value, list | tuple) and any(
        isinstance(item, Mapping) and points_of(item) is None for item in value
    )


def values_of(value: Any) -> list[Any]:
    """The values that a parameter has in one layer or another."""
    return [item["value"] for item in value] if varies(value) else [value]


KEYS = ("filter", "value", "layers", "stack")


def items_of(parameter: str, value: Sequence[Any]) -> list[Item]:
    """The items that a parameter is given as; ParameterError where they are not of their form.

    A filter of "*" is none. Only the last item may be for all tensors: no other one after it
    would ever be taken.
    """
    items = []
    for entry in value:
        if not isinstance(entry, Mapping) or "value" not in entry:
            raise ParameterError(f"{parameter}: {entry!r} is no item with a value", remedy=FORM)
        unknown = [key for key in entry if key not in KEYS]
        if unknown:
            raise ParameterError(f"{parameter}: an item with {unknown[0]!r}", remedy=FORM)
        items.append(_item(parameter, entry))
    for item in items[:-1]:
        if item.everywhere:
            raise ParameterError(
                f"{parameter}: an item for all tensors comes before others, which none can take",
                remedy="put the item without a filter last",
            )
    places = [item._replace(value=None) for item in items]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ParameterError(
            f"{named(parameter, twice)} is given twice", remedy="give each filter one value"
        )
    return items


def _item(parameter: str, entry: Mapping[str, Any]) -> Item:
    filter_, layers, stack = entry.get("filter"), entry.get("layers"), entry.get("stack")
    if filter_ is not None and (not isinstance(filter_, str) or not filter_.strip()):
        raise ParameterError(f"{parameter}: the filter {filter_!r} is no name", remedy=FORM)
    if filter_ is not None and is_regex(filter_):
        load("magmerge.core.name_regex:check")(
            filter_[1:-1], f"the filter {filter_} of {parameter}"
        )
    if layers is not None:
        ends = list(layers) if isinstance(layers, list | tuple) else []
        if [type(end) for end in ends] != [int, int] or not 0 <= ends[0] < ends[1]:
            raise ParameterError(
                f"{parameter}: the layers {layers!r} are no range",
                remedy="write the first block and the one after the last: layers: [0, 8]",
            )
    if stack is not None and (not isinstance(stack, str) or not stack or layers is None):
        raise ParameterError(
            f"{parameter}: the stack {stack!r} tells no layers",
            remedy="name a stack of blocks, and its layers: stack: encoder, layers: [0, 8]",
        )
    range_ = None if layers is None else (layers[0], layers[1])
    return Item(None if filter_ == "*" else filter_, entry["value"], range_, stack)


def is_regex(filter_: str) -> bool:
    """Whether a filter is a regular expression between slashes."""
    return len(filter_) > 2 and filter_.startswith("/") and filter_.endswith("/")


def named(parameter: str, item: Item) -> str:
    """What a message calls a parameter's item: lambda@vae, lambda@layers 0 to 8."""
    words = [] if item.filter is None else [item.filter]
    if item.layers is not None:
        stack = "" if item.stack is None else f" of {item.stack}"
        words.append(f"layers {item.layers[0]} to {item.layers[1]}{stack}")
    return f"{parameter}@{' in '.join(words)}" if words else parameter


def stored(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Items as a recipe holds them."""
    kept = []
    for item in items:
        layers = None if item.layers is None else list(item.layers)
        place = {"filter": item.filter, "layers": layers, "stack": item.stack}
        told = {key: part for key, part in place.items() if part is not None}
        kept.append({**told, "value": item.value})
    return kept


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
    preset of blocks (OUTALL). Between slashes a filter is a regular expression that is searched for
    in names. Else one with * or ? is a shell pattern for whole names, and any other a part of a
    name. `depths` tell how deep in its stack each tensor is; `ranges`, where items name layers, how
    deep in those (`core.layer_ranges.Ranges`).
    """

    def __init__(
        self,
        names: Iterable[str],
        depths: Mapping[str, float] | None = None,
        ranges: Any = None,
    ) -> None:
        self.names, self.depths, self.ranges = tuple(names), depths or {}, ranges
        self._searches: dict[str, Any] = {}
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
        if is_regex(filter_):
            if filter_ not in self._searches:
                search = load("magmerge.core.name_regex:NameRegex")
                self._searches[filter_] = search(filter_[1:-1])
            found: bool = self._searches[filter_].search(name)
            return found
        if "*" in filter_ or "?" in filter_:
            return fnmatchcase(name, filter_)
        return filter_ in name

    def item_for(self, items: Sequence[Item], name: str) -> Item:
        """The first item that takes the tensor; the last of `items` takes all."""
        return next(item for item in items if self._takes(item, name))

    def _takes(self, item: Item, name: str) -> bool:
        within = item.layers is None or self.ranges.depth(item, name) is not None
        return within and self.takes(item.filter, name)

    def value_at(self, items: Sequence[Item], name: str, depth: float | None = None) -> Any:
        """What a tensor takes, of a list with an entry for each expert each: of points those at its
        depth in the layers that the item is for, or else in its stack.
        """
        item = self.item_for(items, name)
        if item.layers is not None:
            depth = self.ranges.depth(item, name)
        return self._settled(
            item.value, name, self.depths.get(name, 0.0) if depth is None else depth
        )

    def _settled(self, value: Any, name: str, depth: float) -> Any:
        if isinstance(value, tuple):
            return self.value_at(value, name, depth)
        if isinstance(value, list):
            return [self._settled(part, name, depth) for part in value]
        return settled(value, depth)

    def faults(self, parameter: str, items: Sequence[Item]) -> list[str]:
        """Filters that match no tensor, or only those that others before them take."""
        taken = [self.item_for(items, name) for name in self.names]
        faults = []
        for item in items:
            if item.everywhere or any(item is own for own in taken):
                continue
            shown = f"the filter {item.filter!r} of {parameter}"
            if item.layers is not None:
                shown = f"the item {named(parameter, item)}"
            if any(self._takes(item, name) for name in self.names):
                faults.append(f"{shown} is never used: filters before it take all its tensors")
            elif item.filter is None or any(self.takes(item.filter, name) for name in self.names):
                faults.append(f"{shown} fits no tensor")
            else:
                faults.append(f"{shown} fits no tensor: {self.near(item.filter)}")
        return faults

    def near(self, filter_: str) -> str:
        """The remedy for a filter that fits no tensor: what may have been meant."""
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
    """The value at a depth from 0 to 1: of points between the two nearest, to a whole number where
    all are; of points that are no numbers the one that was reached last.
    """
    points = points_of(value)
    if points is None:
        return value
    place = depth * (len(points) - 1)
    if not all(type(point) in (int, float) for point in points):
        return points[int(place)]
    left = min(int(place), max(len(points) - 2, 0))
    share = place - left
    exact = float(points[left])
    if share:
        exact = exact * (1 - share) + float(points[left + 1]) * share
    return round(exact) if all(type(point) is int for point in points) else exact
