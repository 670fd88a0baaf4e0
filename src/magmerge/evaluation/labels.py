"""Labels as files hold them, to numbers of classes, numbers, and places among choices."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from magmerge.core.errors import suggestion
from magmerge.data import DataError


def class_numbers(
    labels: Sequence[Any], names: Sequence[str] | None, source: str
) -> Int[Tensor, "rows"]:
    """Labels as numbers from 0: whole numbers as they are, words by their place in `names`."""
    places = {name.strip(): place for place, name in enumerate(names or ())}
    return torch.tensor([_number(label, places, source) for label in labels], dtype=torch.int64)


def values_of(labels: Sequence[Any], source: str) -> Float[Tensor, "rows"]:
    """Labels of a regression, in float64; DataError for one that is no finite number."""
    return torch.tensor([_value(label, source) for label in labels], dtype=torch.float64)


def choices_of(rows: Sequence[Any], source: str) -> list[tuple[str, ...]]:
    """Each row's own choices: a list of two texts or more, or JSON of one, as a table has it."""
    return [_choices(content, number, source) for number, content in enumerate(rows, start=1)]


def right_choices(
    labels: Sequence[Any], choices: Sequence[Sequence[str]], source: str
) -> Int[Tensor, "rows"]:
    """The place of each row's right choice, which is told by its number from 0 or by its text."""
    content = [
        int(class_numbers([label], own, source)[0])
        for label, own in zip(labels, choices, strict=True)
    ]
    return torch.tensor(content, dtype=torch.int64)


def _value(label: Any, source: str) -> float:
    try:
        value = float(label)
    except (ValueError, TypeError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(label, bool):
        raise DataError(
            f"the label {str(label)!r} is no number",
            source=source,
            remedy="name the column of the numbers with label_field",
        )
    return value


def _choices(content: Any, number: int, source: str) -> tuple[str, ...]:
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            content = None
    sound = isinstance(content, list | tuple) and len(content) > 1
    if not sound or not all(isinstance(one, str) and one.strip() for one in content):
        raise DataError(
            f"row {number} has no list of two choices or more",
            source=source,
            remedy='write them as a list of texts, such as ["yes", "no"]',
        )
    return tuple(content)


def _number(label: Any, places: dict[str, int], source: str) -> int:
    word = str(label).strip()
    if isinstance(label, str) and word in places:
        return places[word]
    try:
        number = int(word) if isinstance(label, str) else int(label)
    except (ValueError, TypeError, OverflowError):
        raise DataError(
            f"the label {word!r} is no number of a class",
            source=source,
            remedy=suggestion(word, places)
            if places
            else "name the classes in the order of the head's rows: classes: [no, yes]",
        ) from None
    if not isinstance(label, str) and number != label:
        raise DataError(
            f"the label {label!r} is no whole number",
            source=source,
            remedy="number the classes from 0",
        )
    check_range(number, number, len(places) or None, source)
    return number


def check_range(least: int, greatest: int, classes: int | None, source: str) -> None:
    """DataError where a label is below 0, or not below the number of classes."""
    if least < 0 or (classes is not None and greatest >= classes):
        wrong = least if least < 0 else greatest
        raise DataError(
            f"the label {wrong} is none of {classes if classes else 'the'} classes, which count "
            "from 0",
            source=source,
            remedy="check that data, head and classes belong together",
        )
