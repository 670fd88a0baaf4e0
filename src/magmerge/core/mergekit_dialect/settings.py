"""Parameters of mergekit's as values of a recipe: looked up level by level, then joined."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core.filters import GRADIENT
from magmerge.core.mergekit_dialect.document import Settings
from magmerge.core.mergekit_dialect.method_table import Word
from magmerge.core.mergekit_dialect.nodes import Faults, Node, fields

SYNTAX = (
    "write a number, a list of numbers that runs through the layers, or a list of "
    "{filter: self_attn, value: 0.5}, the last without a filter"
)
DENSITY = "leave the model out, or give it weight: 0; end a list of points at 0.001 or above"
FLAGS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


class Choice(NamedTuple):
    """A value, or a list of points through the layers, for tensors with the filter in their name;
    None is all.
    """

    filter: str | None
    value: Any


class Region(NamedTuple):
    """Some blocks of a stack of the result: half-open; None for all of them, or the main stack.
    Where they are all, `part` is in the names of the module's tensors.
    """

    stack: str | None = None
    layers: tuple[int, int] | None = None
    part: str | None = None

    @property
    def keys(self) -> dict[str, Any]:
        """What an item for these layers says."""
        if self.layers is None:
            return {}
        stack = {} if self.stack is None else {"stack": self.stack}
        return {"layers": list(self.layers), **stack}

    def filter(self, own: str | None) -> dict[str, str]:
        """What an item says of names, with a filter of its own or without."""
        if self.part is not None and own is not None:
            return {"filter": f"/{_escaped(self.part)}.*{_escaped(own)}/"}
        filter_ = self.part or own
        return {} if filter_ is None else {"filter": filter_}


def _escaped(text: str) -> str:
    return re.sub(r"[.^$*+?{}\[\]\\|()/]", r"\\\g<0>", text)


Part = tuple[Region, Sequence[Choice]]
"""A region and the choices there, the last of which takes all tensors."""


class Lookup:
    """Looks parameters up; `patterns` tells whether filters may be patterns. `seen` are those that
    applied: patterns, and parameters that had no value for some tensors.
    """

    def __init__(self, faults: Faults, *, patterns: bool) -> None:
        self._faults, self._patterns = faults, patterns
        self.seen: dict[str, set[str]] = {"patterns": set(), "rest": set()}

    def chain(
        self, levels: Iterable[Settings], name: str, word: Word, fallback: Any
    ) -> list[Choice] | None:
        """What a parameter is, by filters: of the nearest level with a value that takes a tensor.

        Where nothing takes the rest it is the default, or `fallback` where there is none. None
        where no level has it, and it must be said.
        """
        chain: list[Choice] = []
        for settings in levels:
            node = settings.get(name)
            for choice in [] if node is None else self._choices(node, name, word):
                if all(choice.filter != other.filter for other in chain):
                    chain.append(choice)
                if choice.filter is None:
                    return chain
        if word.default is not ...:
            return [*chain, Choice(None, word.default)]
        if not chain:
            return None
        self.seen["rest"].add(name)
        return [*chain, Choice(None, fallback)]

    def _choices(self, node: Node, name: str, word: Word) -> list[Choice]:
        """The choices of one level, as mergekit reads them."""
        conditions = node.value if isinstance(node.value, list) else [node]
        if not any(isinstance(part.value, dict) for part in conditions):
            value = self._value(node, name, word)
            return [] if value is None else [Choice(None, value)]
        choices = []
        for part in conditions:
            if not isinstance(part.value, dict):
                self._faults.add(part.line, f"{name} mixes values and filters", SYNTAX)
                continue
            entry = fields(part, ("filter", "value"), f"an item of {name}", self._faults)
            filter_ = entry["filter"].value if "filter" in entry else None
            if "value" not in entry:
                self._faults.add(part.line, f"an item of {name} has no value", SYNTAX)
                continue
            value = self._value(entry["value"], name, word)
            if not isinstance(filter_, str | None):
                self._faults.add(part.line, f"the filter {filter_!r} of {name} is no text", SYNTAX)
            elif value is not None and self._matches(filter_):
                choices.append(Choice(None if filter_ in ("*", "") else filter_, value))
        return choices

    def _matches(self, filter_: str | None) -> bool:
        """Whether the filter can take a tensor; that of a pattern is noted."""
        if filter_ in (None, "*", ""):
            return True
        assert filter_ is not None
        slashes = len(filter_) > 2 and filter_[0] == filter_[-1] == "/"
        if "*" in filter_ or "?" in filter_ or slashes:
            self.seen["patterns"].add(filter_)
            return self._patterns
        return bool(filter_.strip())

    def _value(self, node: Node, name: str, word: Word) -> Any:
        if not isinstance(node.value, list):
            return self._scalar(node, name, word)
        if not node.value:
            return None
        points = [self._scalar(part, name, word) for part in node.value]
        if None in points or len(points) == 1:
            return points[0]
        return points

    def _scalar(self, node: Node, name: str, word: Word) -> Any:
        value = node.value
        if isinstance(value, str):
            value = _read(value, word.kind)
        fits = type(value) is bool if word.kind is bool else type(value) in (int, float)
        if word.kind is bool and type(value) in (int, float) and value in (0, 1):
            return bool(value)
        if word.kind is not bool and type(value) is bool:
            return int(value)
        if word.kind is int and type(value) is float and value.is_integer():
            return int(value)
        if not fits or (word.kind is int and type(value) is float) or not math.isfinite(value):
            meant = {bool: "true or false", int: "a whole number"}.get(word.kind, "a number")
            shown = "a list" if isinstance(node.value, list | dict) else repr(node.value)
            self._faults.add(node.line, f"{name}: {shown} is not {meant}", SYNTAX)
            return None
        if name == "density" and value <= 0:
            self._faults.add(node.line, f"a density of {value} keeps nothing", DENSITY)
        return float(value) if word.kind is float else value


def _read(text: str, kind: type) -> Any:
    """A text as the number or flag that it stands for: YAML takes 1e-5 for a text."""
    if kind is bool:
        return FLAGS.get(text.lower(), text)
    try:
        return float(text)
    except ValueError:
        return text


def spread(
    parts: Sequence[Part], change: Callable[[float], float] | None = None, *, regions: int = 1
) -> Any:
    """One value, or items: for each region its choices in turn, and last one for the rest.

    `change` is what each number becomes, `regions` how many the result has, in some of which the
    parameter may mean nothing.
    """
    last, rest = parts[-1]
    runs = any(isinstance(c.value, list) for _, choices in parts for c in choices)
    one_layer = last.layers is not None and last.layers[1] - last.layers[0] == 1
    if (regions == 1 and not (runs and one_layer)) or (
        not runs and all(choices == rest for _, choices in parts)
    ):
        parts = [(Region(), rest)]
    items: list[dict[str, Any]] = []
    for region, choices in parts:
        if region.part is None or choices != rest:
            for choice in choices:
                items += _items(choice, region, change)
    last, rest = parts[-1]
    if last.part is not None:
        items += [item for choice in rest for item in _items(choice, Region(), change)]
    elif last.keys:
        point = rest[-1].value[0] if isinstance(rest[-1].value, list) else rest[-1].value
        items.append({"value": _changed(point, change)})
    alone = len(items) == 1 and not isinstance(items[0]["value"], Mapping)
    return items[0]["value"] if alone else items


def _items(choice: Choice, region: Region, change: Callable[[float], float] | None) -> list[Any]:
    """The items of a choice: one, or one for each value of flags that run through the layers."""
    keys = region.filter(choice.filter)
    if isinstance(choice.value, list) and isinstance(choice.value[0], bool):
        return [
            {**keys, "value": value, **Region(region.stack, layers).keys}
            for value, layers in _steps(choice.value, region)
        ]
    return [{**keys, "value": _changed(choice.value, change), **region.keys}]


def _steps(flags: Sequence[bool], region: Region) -> Iterable[tuple[bool, tuple[int, int]]]:
    """Flags that run through a region's layers, each with its layers."""
    start, stop = region.layers or (0, len(flags))
    count = stop - start
    places = [i / (count - 1) if count > 1 else 1.0 for i in range(count)]
    values = [flags[int(place * (len(flags) - 1))] for place in places]
    first = 0
    for i in range(1, count + 1):
        if i == count or values[i] != values[first]:
            yield values[first], (start + first, start + i)
            first = i


def _changed(value: Any, change: Callable[[float], float] | None) -> Any:
    """A value as a recipe holds it."""
    if isinstance(value, list):
        return {GRADIENT: [_changed(point, change) for point in value]}
    return value if change is None else change(value)


def leaves(value: Any) -> Iterable[Any]:
    """The single values in a value of a recipe, whatever its form."""
    if isinstance(value, Mapping):
        yield from leaves(value[GRADIENT] if GRADIENT in value else value["value"])
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def of_experts(values: Sequence[Any], *, weights: bool) -> Any:
    """A parameter of each expert as one: a single value where all have the same, else a list.

    Weights are always a list; where those of all experts vary alike, in items of such lists.
    """
    if not values:
        return []
    if not weights:
        same = all(value == values[0] for value in values)
        return values[0] if same else [_plain(value) for value in values]
    if not any(isinstance(value, list) for value in values):
        return list(values)
    items = [value if isinstance(value, list) else [{"value": value}] for value in values]
    heads = [[{k: v for k, v in item.items() if k != "value"} for item in own] for own in items]
    if any(head != heads[0] for head in heads):
        return [_plain(value) for value in values]
    return [
        {**head, "value": [own[place]["value"] for own in items]}
        for place, head in enumerate(heads[0])
    ]


def _plain(value: Any) -> Any:
    """An entry of a list of experts: a gradient for all tensors needs no item."""
    alone = isinstance(value, list) and len(value) == 1 and set(value[0]) == {"value"}
    return value[0]["value"] if alone else value
