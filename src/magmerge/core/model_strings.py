"""Models as people write them: MODEL[@REVISION][+ADAPTER[@REVISION]], each a path or org/name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from magmerge.core.errors import OF_FILES, CheckpointError, no_such_model, printable

ID = re.compile(
    r"(?P<id>[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?)"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9_./-]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that never becomes another one."""
FORM = "write MODEL, or MODEL@REVISION, or MODEL+ADAPTER; each is a path or org/name of the hub"
Exists = Callable[[str], bool]


class Part(NamedTuple):
    """A model or an adapter: its path, or its id on the hub with the revision that is said."""

    place: str
    revision: str | None = None
    on_hub: bool = False

    def __str__(self) -> str:
        return self.place if self.revision is None else f"{self.place}@{self.revision}"


class ModelString(NamedTuple):
    """A model, and the adapter that is folded into it, if one is."""

    model: Part
    adapter: Part | None = None

    def __str__(self) -> str:
        return str(self.model) if self.adapter is None else f"{self.model}+{self.adapter}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The model, and the adapter if there is one."""
        return (self.model,) if self.adapter is None else (self.model, self.adapter)


def parse(text: str, exists: Exists = os.path.lexists) -> ModelString:
    """What a string names. A path that exists is that path, whatever signs it has.

    CheckpointError, with the remedy, for what names nothing or may be read in two ways.
    """
    if text == "" or "\0" in text:
        what = "is empty" if text == "" else f"holds a NUL: {text!r}"
        raise CheckpointError(f"a model's path {what}", remedy="name a folder or a file")
    if exists(text):
        return ModelString(Part(text))
    whole = _part(text, exists)
    if whole is not None:
        _check_id(whole, exists)
        return ModelString(whole)
    pairs = [(text[:place], text[place + 1 :]) for place, c in enumerate(text) if c == "+"]
    read = [(_part(model, exists), _part(adapter, exists)) for model, adapter in pairs]
    whole_pairs = [(m, a) for m, a in read if m is not None and a is not None]
    if not whole_pairs:
        raise _unreadable(text, pairs, read, exists)
    here = [(not m.on_hub) + (not a.on_hub) for m, a in whole_pairs]
    best = [pair for pair, count in zip(whole_pairs, here, strict=True) if count == max(here)]
    if len(best) > 1:
        absolute = ["+".join(map(_absolute, pair)) for pair in best]
        raise CheckpointError(
            f"it may be {' or '.join(f'{m} with {a}' for m, a in best)}",
            source=text,
            remedy=f"write absolute paths: {' or '.join(absolute)}",
        )
    for part in best[0]:
        _check_id(part, exists)
    return ModelString(*best[0])


def is_id(text: str) -> bool:
    """Whether a text is org/name, without a revision, whatever lies at such a path."""
    match = ID.fullmatch(text)
    return match is not None and match["revision"] is None


def is_name(text: object) -> bool:
    """Whether a text is no path that exists, and may be something else than a path."""
    if not isinstance(text, str) or os.path.lexists(text):
        return False
    return "+" in text or "@" in text or ID.fullmatch(text) is not None


def short_name(text: str) -> str:
    """What an expert is called that this string names: the last part of its path or id."""
    if os.path.lexists(text):
        return Path(os.path.realpath(text)).name
    try:
        parts = parse(text).parts
    except CheckpointError:
        return Path(os.path.realpath(text)).name
    names = [
        part.place.rpartition("/")[2] if part.on_hub else Path(os.path.realpath(part.place)).name
        for part in parts
    ]
    return "+".join(names)


def _part(text: str, exists: Exists) -> Part | None:
    """One side; None where it is neither a path that exists nor an id."""
    if text and exists(text):
        return Part(text)
    match = ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:
        return None
    if match["revision"] is None and Path(text).suffix in OF_FILES:
        return None
    return Part(match["id"], match["revision"], on_hub=True)


def _check_id(part: Part, exists: Exists) -> None:
    """CheckpointError for an id that may as well be meant as a path."""
    if not part.on_hub:
        return
    if part.revision is not None:
        if exists(part.place):
            raise CheckpointError(
                f"{part.place} is here, and what is here has no revisions",
                source=str(part),
                remedy=f"write {part.place} for it; for the hub's, run elsewhere or rename it",
            )
        return
    if exists(part.place.partition("/")[0]):
        error = no_such_model(Path(part.place))
        raise CheckpointError(
            error.problem,
            source=part.place,
            remedy=f"{error.remedy}; for the hub's model of this name write {part.place}@main",
        )


def _absolute(part: Part) -> str:
    return str(part) if part.on_hub else os.path.abspath(part.place)


def _unreadable(
    text: str,
    pairs: list[tuple[str, str]],
    read: list[tuple[Part | None, Part | None]],
    exists: Exists,
) -> CheckpointError:
    """Why a string names nothing: the side that is missing, where the other is there."""
    for sides, parts in zip(pairs, read, strict=True):
        if (parts[0] is None) != (parts[1] is None):
            place, role = (0, "model") if parts[0] is None else (1, "adapter")
            lost = sides[place]
            error = _lost(lost, exists)
            return CheckpointError(
                f"the {role} {printable(lost)!r} in it: {error.problem}",
                source=text,
                remedy=error.remedy,
            )
    if pairs:
        return CheckpointError("no such model and no such adapter", source=text, remedy=FORM)
    return _lost(text, exists)


def _lost(text: str, exists: Exists) -> CheckpointError:
    if not text:
        return CheckpointError("it is empty", remedy=FORM)
    place, at, revision = text.rpartition("@")
    if at and place and exists(place):
        return CheckpointError(
            f"{place} is here, and what is here has no revisions: {revision!r}",
            source=text,
            remedy=f"write {place}; revisions are of models on the hub: org/name@REVISION",
        )
    return no_such_model(Path(text))
