"""What a parameter may be, in words, from its annotation."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "not given"}


def allowed(annotation: Any) -> str:
    """The values of `annotation`: their kind and range, or a list of words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(parts[0]) + _range(parts[1:])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in parts)
    if origin in (Union, UnionType):
        return ", or ".join(map(allowed, parts))
    if origin is Sequence:
        return "a list of one for each expert"
    return PLAIN.get(annotation, str(annotation))


def _range(marks: Sequence[object]) -> str:
    """The interval that these marks of an annotation leave; nothing where they leave all."""
    low, high = "", ""
    for mark in marks:
        for bound in mark if isinstance(mark, Interval) else [mark]:
            match bound:
                case Gt(gt):
                    low = f"({gt:g}"
                case Ge(ge):
                    low = f"[{ge:g}"
                case Lt(lt):
                    high = f"{lt:g})"
                case Le(le):
                    high = f"{le:g}]"
    return f" in {low or '(-∞'}, {high or '∞)'}" if low or high else ""
