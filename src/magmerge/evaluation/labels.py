"""Labels as files hold them, to numbers of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from magmerge.errors import suggestion
from magmerge.samples import DataError


def class_numbers(
    labels: Sequence[Any], names: Sequence[str] | None, source: str
) -> Int[Tensor, "rows"]:
    """Labels as numbers from 0: whole numbers as they are, words by their place in `names`."""
    places = {name.strip(): place for place, name in enumerate(names or ())}
    return torch.tensor([_number(label, places, source) for label in labels], dtype=torch.int64)


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
