"""Names of classes as folders and data sets spell them, to the numbers of a task's classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from magmerge.core.errors import printable, suggestion
from magmerge.data.rows import DataError

if TYPE_CHECKING:
    from magmerge.evaluation.suites.definitions import ImageTask, SuiteTask

_INITIAL = re.compile(r"[a-z][_/]")


def folded(name: str) -> str:
    """A name without case, spaces and marks; of digits alone, without zeros in front."""
    text = "".join(letter for letter in name.casefold() if letter.isalnum())
    return str(int(text)) if text.isascii() and text.isdigit() else text


class ClassNames:
    """The numbers of a task's classes by what folders call them."""

    def __init__(self, task: ImageTask) -> None:
        self.task = task
        self._known = numbers_by_name(task)
        for number, name in enumerate(task.folders or ()):
            self._known.setdefault(folded(name), number)

    def number(self, folder: str, source: object) -> int:
        """The number of the class with this folder; DataError where there is none."""
        known = self._known.get(folded(folder))
        if known is None and self.task.initials and _INITIAL.match(folder):
            known = self._known.get(folded(folder[2:]))
        if known is None:
            names = {*self.task.classes, *(self.task.folders or ())}
            raise DataError(
                f"the folder {printable(folder)!r} is none of the {len(self.task.classes)} classes",
                source=source,
                remedy=_nearest(folder, names),
            )
        return known

    def listed(self, folders: Iterable[str], source: object) -> tuple[str, ...]:
        """The classes in their order, each under its folder's name where it has one.

        DataError for a folder of no class, and for two folders of one.
        """
        names = list(self.task.classes)
        seen: dict[int, str] = {}
        for folder in folders:
            number = self.number(folder, source)
            if seen.setdefault(number, folder) != folder:
                raise DataError(
                    f"the folders {seen[number]!r} and {folder!r} are both the class "
                    f"{self.task.classes[number]!r}",
                    source=source,
                    remedy="put their images into one, and spell it alike in each split",
                )
            names[number] = folder
        return tuple(names)


def numbers_by_name(task: SuiteTask) -> dict[str, int]:
    """The numbers of classes by their folded names and aliases."""
    known = {folded(name): number for number, name in enumerate(task.classes)}
    return known | {folded(alias): known[folded(name)] for alias, name in task.aliases.items()}


def order_of(names: Sequence[str], task: SuiteTask, source: object) -> tuple[int, ...]:
    """Where each of the task's classes is among `names`, which are those of another file.

    DataError unless `names` are the task's classes, each once.
    """
    known: Mapping[str, int] = numbers_by_name(task)
    order: dict[int, int] = {}
    for place, name in enumerate(names):
        number = known.get(folded(name))
        if number is None or number in order:
            raise DataError(
                f"its label {printable(name)!r} "
                + ("is none of the task's classes" if number is None else "is there twice"),
                source=source,
                remedy=_nearest(name, task.classes),
            )
        order[number] = place
    if len(order) != len(task.classes):
        raise DataError(
            f"it has {len(order)} labels, and the task has {len(task.classes)} classes",
            source=source,
            remedy=f"the task's classes are {', '.join(task.classes[:8])}"
            + (", ..." if len(task.classes) > 8 else ""),
        )
    return tuple(order[number] for number in range(len(task.classes)))


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known names; of many not all are listed."""
    remedy = suggestion(name, known)
    listing = sorted(known)
    if remedy.startswith("did you mean") or len(listing) <= 12:
        return remedy
    return f"the classes are {', '.join(listing[:8])} and {len(listing) - 8} more"
