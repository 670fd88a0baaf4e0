"""The suites by name, the facts of their tasks, and the names of classes as data spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from magmerge.core.errors import UnknownNameError, printable, suggestion
from magmerge.data.rows import DataError

STRICT = ConfigDict(frozen=True, extra="forbid")
SuiteKind = Literal["vision", "text"]
ImageLayout = Literal[
    "cars", "cifar", "dtd", "eurosat", "food101", "gtsrb", "idx", "pets", "resisc45", "sun397",
    "svhn",
]  # fmt: skip
TRAIN, TEST = "train", "test"


class SuiteTask(BaseModel):
    """What all tasks have: their name for people, and where their data is on the hub.

    `splits` maps the suite's splits (train, test and perhaps validation) to those of the hub's
    data; `spellings` are other names of the task, of its folder too; `aliases` other spellings of
    its classes. `note` is said wherever the task is used.
    """

    model_config = STRICT

    title: str
    hub: str
    config: str | None = None
    splits: Mapping[str, str]
    label: str = "label"
    spellings: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = Field(default_factory=dict)
    note: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> SuiteTask:
        if not {TRAIN, TEST} <= set(self.splits) or self.splits[TRAIN] == self.splits[TEST]:
            raise ValueError("splits needs train and test, which differ")
        if len({folded(name) for name in self.classes}) != len(self.classes):
            raise ValueError("two classes have one name")
        if not set(self.aliases.values()) <= set(self.classes):
            raise ValueError("an alias is of no class")
        return self

    def source(self, split: str) -> str:
        """The hub's data of a split, as `read_samples` takes it: NAME:CONFIG:SPLIT."""
        return f"{self.hub}:{self.config or ''}:{self.splits[split]}"


class ImageTask(SuiteTask):
    """A task of images: the columns, the zero-shot prompts, and its local layouts.

    `classes` are the names in the prompts, in the order of the labels; `folders` what a local
    folder calls the classes where that differs. With `initials` a class's folder may begin with its
    first letter: a_abbey, a/abbey. `layout` is what its authors or torchvision make of it on disk.
    """

    classes: tuple[str, ...] = Field(min_length=2)
    image: str = "image"
    templates: tuple[str, ...] = Field(min_length=1)
    folders: tuple[str, ...] | None = None
    initials: bool = False
    layout: ImageLayout | None = None

    @model_validator(mode="after")
    def _fitting(self) -> ImageTask:
        if self.folders is not None and len(self.folders) != len(self.classes):
            raise ValueError("folders and classes differ in number")
        if any(template.count("{}") != 1 for template in self.templates):
            raise ValueError("a template has no one {}")
        return self


class TextTask(SuiteTask):
    """A task of texts, or of pairs of them; without classes it is a regression."""

    text: str
    pair: str | None = None
    metrics: tuple[str, ...] = Field(min_length=1)


class Definition(BaseModel):
    """A suite: its name, its kind, and its tasks in order."""

    model_config = STRICT

    name: str
    kind: SuiteKind
    tasks: tuple[str, ...] = Field(min_length=1)

    @property
    def facts(self) -> dict[str, ImageTask | TextTask]:
        """The facts of its tasks, in order."""
        return {name: task(self.kind, name) for name in self.tasks}


@cache
def definitions() -> Mapping[str, Definition]:
    """All suites by name."""
    content = _read("suites.yaml")
    return {name: Definition(name=name, **entry) for name, entry in content.items()}


@cache
def task(kind: SuiteKind, name: str) -> ImageTask | TextTask:
    """The facts of a task."""
    facts = ImageTask if kind == "vision" else TextTask
    return facts.model_validate(_read(kind, f"{name}.yaml"))


def definition(name: str) -> Definition:
    """The suite of this name; UnknownNameError with a suggestion where there is none."""
    facts = definitions().get(name)
    if facts is None:
        raise UnknownNameError(
            f"there is no suite {name!r}", remedy=suggestion(name, definitions())
        )
    return facts


def chosen(suite: Definition, selection: Iterable[str] | None) -> dict[str, ImageTask | TextTask]:
    """The tasks asked for, under any of their spellings, in the suite's order; None for all.

    UnknownNameError with a suggestion for a name that the suite does not have.
    """
    if selection is None:
        return suite.facts
    names = {task_name(suite, name) for name in selection}
    return {name: facts for name, facts in suite.facts.items() if name in names}


def task_name(suite: Definition, title: str) -> str:
    """The suite's own name of a task; UnknownNameError with a suggestion where it has none."""
    known = {
        folded(spelling): name
        for name, facts in suite.facts.items()
        for spelling in (name, *facts.spellings)
    }
    if folded(title) not in known:
        raise UnknownNameError(
            f"the suite {suite.name} has no task {title!r}",
            remedy=suggestion(title, suite.tasks),
        )
    return known[folded(title)]


def named_suites() -> list[dict[str, Any]]:
    """Every named suite for a program to read: name, kind, tasks with their numbers of classes."""

    def entry(name: str, each: SuiteTask) -> dict[str, Any]:
        return {"task": name, "title": each.title, "classes": len(each.classes), "data": each.hub}

    return [
        {
            "suite": suite.name,
            "kind": suite.kind,
            "tasks": [entry(name, each) for name, each in suite.facts.items()],
        }
        for suite in definitions().values()
    ]


def _read(*parts: str) -> dict[str, Any]:
    path = files("magmerge.evaluation.suites").joinpath("tasks", *parts)
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


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
