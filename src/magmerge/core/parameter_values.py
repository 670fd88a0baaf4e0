"""A parameter's value as people give it, checked: one value; points through the depth of the model;
items for some tensors; or, where each expert has a value of its own, a list of any of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from magmerge.core.errors import ParameterError
from magmerge.core.filters import GRADIENT, Item, items_of, named, points_of, stored, varies
from magmerge.core.traits import Calibrator, Method, Parameter

FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class _Place:
    """What a value is checked as, and what messages call it. `one` is the type of a single value;
    `each`: a list has an entry for each expert; `listed`: a list is a value; else it is points.
    """

    owner: str
    parameter: Parameter
    shown: str
    one: Any
    each: bool
    listed: bool
    default: Any

    @classmethod
    def of(cls, owner: str, parameter: Parameter) -> _Place:
        """That of a parameter's whole value."""
        one, each = parameter.annotation, parameter.per_expert is not None
        return cls(owner, parameter, parameter.name, one, each, _is_list(one), parameter.default)

    def of_expert(self, number: int) -> _Place:
        """That of one expert's entry, counted from 1."""
        assert self.parameter.per_expert is not None
        default = self.parameter.per_expert.default
        return replace(
            self,
            shown=f"{self.shown} (expert {number})",
            one=_entry(self.parameter.annotation),
            each=False,
            listed=False,
            default=self.parameter.default if default is None else default,
        )


def check_value(item: Method | Calibrator, parameter: Parameter, value: Any) -> Any:
    """A parameter's checked value; of one that varies by layer, its items, the last for the rest.

    Without an item for all tensors the default is added as one.
    """
    place = _Place.of(item.name, parameter)
    if isinstance(item, Calibrator):
        if varies(value) or points_of(value) is not None:
            raise ParameterError(
                f"{parameter.name} of {item.name} cannot vary by layer: a calibrator's parameters "
                "hold for all layers",
                remedy="give it one value; exempt layers with --skip (skip=)",
            )
        return _checked(place, value)
    if parameter.per_expert and _of_each_expert(value):
        value = [{"value": value}]
    if varies(value):
        items = _items(place, value)
        single = len(items) == 1 and items[0].everywhere and not runs(items[0].value)
        return items[0].value if single else stored(items)
    checked = _graded(place, value)
    return stored([Item(None, checked)]) if runs(checked) else checked


def runs(value: object) -> bool:
    """Whether a value, or one of a list of such, is another in other layers."""
    parts = value if isinstance(value, list | tuple) else [value]
    return any(points_of(part) is not None or varies(part) for part in parts)


def _of_each_expert(value: object) -> bool:
    """Whether it is a list with an entry for each expert, some of which are items."""
    return isinstance(value, list | tuple) and any(varies(part) for part in value)


def _items(place: _Place, value: Sequence[Any]) -> list[Item]:
    items = [
        entry._replace(value=_graded(replace(place, shown=named(place.shown, entry)), entry.value))
        for entry in items_of(place.shown, value)
    ]
    return items if items[-1].everywhere else [*items, Item(None, place.default)]


def _graded(place: _Place, value: Any) -> Any:
    """A checked value; of points through the depth each, and of a list each expert's entry."""
    points = points_of(value)
    if isinstance(value, list | tuple) and value:
        if place.each:
            return [_entry_of(place.of_expert(n), part) for n, part in enumerate(value, start=1)]
        points = points if place.listed else value
    if points is None:
        return _checked(place, value)
    return {GRADIENT: [_checked(place, point) for point in points]}


def _entry_of(place: _Place, value: Any) -> Any:
    """One expert's entry: a value, points, or items."""
    if not varies(value):
        return _graded(place, value)
    items = _items(place, value)
    return items[0].value if len(items) == 1 and items[0].everywhere else stored(items)


def _checked(place: _Place, value: Any) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(place.one, config=FINITE)
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as error:
        fault, parameter = error.errors()[0], place.parameter
        raise ParameterError(
            f"{place.shown} = {value!r} for {place.owner}: {fault['msg'].lower()}",
            remedy=f"{parameter.name}: {parameter.meaning or 'see its method'}; "
            f"the default is {parameter.default!r}{_example(parameter.default)}",
        ) from error
    return list(valid) if isinstance(valid, tuple) else valid


def _example(default: object) -> str:
    return "" if default is not None else ". On the command line: --set 'weights=[0.5, 0.5]'"


def _is_list(annotation: Any) -> bool:
    """Whether a list is a value of this type."""
    return any(get_origin(part) in (Sequence, list, tuple) for part in _parts(annotation))


def _entry(annotation: Any) -> Any:
    """The type of the entries of a list that is a value of this type."""
    lists = [part for part in _parts(annotation) if get_origin(part) in (Sequence, list, tuple)]
    return get_args(lists[0])[0]


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The types that a union, marked or not, is made of."""
    inner = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return (inner, *get_args(inner))
