"""The paths that a recipe names: from where the program runs, and from where a recipe lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from magmerge.core.errors import MagmergeError
from magmerge.core.lazy import load

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
    """What is here, as it is called from a folder; all else, and `others`, as they are.

    A path so told begins with a dot, so that it is never taken for a name of the hub. Links on the
    way are followed, as `..` behind a link is another folder than in front of it.
    """

    def one(text: str) -> str:
        return told_from(folder, text) if os.path.lexists(text) else text

    def change(text: str) -> str:
        if text in others or "+" not in text or os.path.lexists(text):
            return text if text in others or not text else one(text)
        parts = _parts(text, os.path.lexists)
        return "+".join(map(one, parts)) if parts else text

    return change


def told_from(folder: Path, path: str) -> str:
    """A path as it is called from a folder; as it is where that is on another drive."""
    try:
        told = Path(os.path.relpath(_led_to(path), os.path.realpath(folder))).as_posix()
    except ValueError:
        return path
    return told if _dotted(told) else f"./{told}"


def rooted_at(
    folder: Path, others: Collection[str | None] = (), lost: list[str] | None = None
) -> Change:
    """What is called from a folder, as it is called from here; names, and `others`, as they are.

    A path is never looked for elsewhere: one that leads to nothing is told to `lost`, and stays a
    path of that folder. So does a name of what happens to lie where the program runs.
    """
    lost = [] if lost is None else lost

    def there(text: str) -> bool:
        return os.path.lexists(_placed(folder, text))

    def one(text: str) -> str:
        if not text or os.path.isabs(text):
            return text
        found = there(text)
        if not found and not _dotted(text) and not os.path.lexists(text):
            return text
        if not found:
            lost.append(text)
        return _placed(folder, text)

    def change(text: str) -> str:
        if text in others or "\0" in text or "+" not in text or there(text):
            return text if text in others or "\0" in text else one(text)
        parts = _parts(text, there)
        if parts:
            return "+".join(map(one, parts))
        before = len(lost)
        told = "+".join(map(one, text.split("+")))
        if len(lost) > before:
            lost[before:] = [text]
        return told

    return change


def _parts(text: str, exists: Callable[[str], bool]) -> list[str]:
    """The model and the adapter of MODEL+ADAPTER; nothing where it cannot be read so."""
    try:
        return [*map(str, load("magmerge.core.model_strings:parse")(text, exists).parts)]
    except MagmergeError:
        return []


def _dotted(text: str) -> bool:
    """Whether a text is a relative path, whatever there is."""
    return text.partition("/")[0] in (".", "..")


def _placed(folder: Path, text: str) -> str:
    """Where a path of a folder leads; with no more links followed than is needed for that."""
    place = _led_to(os.path.join(os.path.realpath(folder), text))
    plain = os.path.normpath(os.path.join(folder, text))
    return plain if _led_to(plain) == place else place


def _led_to(path: str) -> str:
    """Where a path leads, with its own last name: a file's name tells its kind, a link's target
    may not.
    """
    head, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head), name)
