"""The paths that a recipe names: from where the program runs, and from where a recipe lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

Change = Callable[[str], str]
"""From a text that may be a path to what it is called elsewhere."""
ROLES, MAPS = ("base", "merged"), ("experts", "statistics")
INNER = (("output", "donor"), ("samples", "data"))
"""Where a recipe's content has paths: texts, and maps or lists of them."""


def with_paths(content: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A recipe's content, which may be anybody's, with other paths."""
    told = dict(content)
    for key in (*ROLES, *MAPS):
        if key in told:
            told[key] = _changed(told[key], change)
    for key, inner in INNER:
        if isinstance(told.get(key), Mapping) and inner in told[key]:
            told[key] = {**told[key], inner: _changed(told[key][inner], change)}
    return told


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(own, change) for key, own in value.items()}
    return [_changed(own, change) for own in value] if isinstance(value, list) else value


def seen_from(folder: Path, others: Collection[str | None] = ()) -> Change:
    """What is here, as it is called from a folder; all else, and `others`, as they are."""

    def one(text: str) -> str:
        if not os.path.lexists(text):
            return text
        try:
            return Path(os.path.relpath(text, folder)).as_posix()
        except ValueError:  # on another drive
            return text

    return _each_part(one, others)


def rooted_at(folder: Path, others: Collection[str | None] = ()) -> Change:
    """What lies where it is called from a folder, as it is called from here; all else as it is.

    What lies there under no such name may be called from where the program ran, as recipes beside
    results once were.
    """

    def one(text: str) -> str:
        place = os.path.normpath(os.path.join(folder, text))
        if os.path.isabs(text) or "\0" in text or not os.path.lexists(place):
            return text
        return place

    return _each_part(one, others)


def _each_part(one: Change, others: Collection[str | None]) -> Change:
    """The change of a path, and of both of a model and an adapter: MODEL+ADAPTER."""

    def change(text: str) -> str:
        if text in others or not text:
            return text
        whole = one(text)
        if whole != text or "+" not in text or os.path.lexists(text):
            return whole
        return "+".join(one(part) if part else part for part in text.split("+"))

    return change
