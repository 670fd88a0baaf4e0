"""A task's data in a local folder: which layout it has, and what `evaluate` reads of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from magmerge.core.errors import shortened
from magmerge.data import idx
from magmerge.data.image_folder import images
from magmerge.data.library import MARKS, is_saved
from magmerge.data.rows import DataError
from magmerge.evaluation.suites.definitions import (
    TEST,
    TRAIN,
    ClassNames,
    ImageTask,
    SuiteTask,
    folded,
    order_of,
)
from magmerge.evaluation.suites.layouts import LAYOUTS, Listed, lists_of

FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""What folders of the suite's splits are called."""
TABLES = (".jsonl", ".csv", ".tsv", ".json", ".ndjson")
PICKLED = ("data_batch_1", "test_batch", "cifar-10-batches-py", "cifar-100-python", "meta")
EMNIST = "emnist-letters-"
SAVED = "a saved data set"
"""The one kind of local images with the hub's own columns."""


class Local(NamedTuple):
    """A task's data on this machine: `sources` by split are paths that exist.

    `lists` are image lists that are still to be written, with their labels as numbers; `classes`
    the names that the sources' labels have, in the order of the classes; `kind` says what was read.
    """

    kind: str
    sources: Mapping[str, Path]
    lists: Mapping[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]


def local_data(name: str, task: SuiteTask, root: Path) -> Local:
    """The task's data under `root`; DataError where there is none, or it does not fit the task."""
    folder = _folder_of(name, task, root)
    local: Local | None
    if (folder / MARKS[0]).is_file():
        local = _saved(folder, task)
    elif isinstance(task, ImageTask):
        local = _image_folders(folder, task) or _arrays(name, folder, task) or _listed(folder, task)
        if local is None:
            raise _unread(name, folder, task)
    else:
        local = _tables(folder, task)
    absent = [split for split in (TRAIN, TEST) if split not in {*local.sources, *local.lists}]
    if absent:
        raise DataError(
            f"there is no data of its {absent[0]} split",
            source=folder,
            remedy=f"put it beside the {TRAIN if absent[0] == TEST else TEST} split, in the same "
            "layout",
        )
    return local


def _folder_of(name: str, task: SuiteTask, root: Path) -> Path:
    if not root.is_dir():
        raise DataError("it is no folder", source=root, remedy="check the path given to --data")
    spellings = (name, *task.spellings)
    known = set(map(folded, spellings))
    if isinstance(task, ImageTask) and task.layout == "cifar":
        known.add(folded("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"))
    places = [path for path in sorted(root.iterdir()) if path.is_dir()]
    own = [path for path in places if folded(path.name) in known]
    if len(own) == 1:
        return own[0]
    if own:
        raise DataError(
            f"the task {name} has {len(own)} folders: {shortened([path.name for path in own])}",
            source=root,
            remedy="keep one of them there",
        )
    raise DataError(
        f"there is no folder for the task {name}",
        source=root,
        remedy=f"name it {', '.join(spellings)}; or leave the task out with --task "
        "(tasks=), or leave --data (data=) out to take the data from the hub",
    )


def _saved(folder: Path, task: SuiteTask) -> Local:
    """A DatasetDict that `save_to_disk` wrote: each split is a folder of its own."""
    sources = {split: folder / hub for split, hub in task.splits.items() if is_saved(folder / hub)}
    for path in sources.values():
        names = _stored_classes(path, task.label)
        if names is not None and task.classes:
            order = order_of(names, task, path)
            if list(order) != list(range(len(order))):
                raise DataError(
                    "its labels are numbered in another order than the task's classes",
                    source=path,
                    remedy=f"save it with the labels in the order of {task.hub}",
                )
    return Local(SAVED, sources, {}, task.classes)


def _stored_classes(folder: Path, label: str) -> list[str] | None:
    """The label names that a saved data set tells and that are words; None if it tells none."""
    try:
        content = json.loads((folder / MARKS[1]).read_text(encoding="utf-8"))
        names = content["features"][label]["names"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    words = isinstance(names, list) and all(isinstance(label, str) for label in names)
    return names if words and not all(label.isdigit() for label in names) else None


def _tables(folder: Path, task: SuiteTask) -> Local:
    """train, validation and test in files of rows; a split may have the hub's name of it."""
    sources: dict[str, Path] = {}
    for split in (TRAIN, TEST, "validation"):
        hub = task.splits.get(split, split)
        for stem in dict.fromkeys((hub, split) if hub.isidentifier() else (split,)):
            matches = [
                folder / f"{stem}{end}" for end in TABLES if (folder / f"{stem}{end}").is_file()
            ]
            if matches and matches[0] not in sources.values():
                sources[split] = matches[0]
                break
    return Local("files of rows", sources, {}, task.classes)


def _image_folders(folder: Path, task: ImageTask) -> Local | None:
    """SPLIT/CLASS/*.png for train and test, and perhaps validation."""
    inner = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    sources = {
        split: inner[name]
        for split, names in FOLDERS.items()
        for name in [next((name for name in names if name in inner), None)]
        if name is not None and _classes_in(inner[name])
    }
    if not sources:
        return None
    if set(sources) == {TRAIN, "validation"}:
        raise DataError(
            "it has train and val, and no test",
            source=folder,
            remedy="rename val to test if its images are those of the official test split, as in "
            "the folders of mlfoundations/task_vectors",
        )
    names = ClassNames(task)
    matches = [(name, path) for path in sources.values() for name in _classes_in(path)]
    for name, path in matches:
        names.number(name, path)
    return Local("image folders", sources, {}, names.listed((name for name, _ in matches), folder))


def _classes_in(folder: Path) -> list[str]:
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path.name for path in inner if images(path)]


def _arrays(name: str, folder: Path, task: ImageTask) -> Local | None:
    """One file of all images a split: MNIST's own, packed or not, or SVHN's."""
    kind, places, ends = "SVHN's .mat files", [folder], [""]
    files = {split: f"{split}_32x32.mat" for split in (TRAIN, TEST)}
    if task.layout == "idx":
        kind, ends = "idx files", ["", idx.PACKED]
        places = [folder / inner for inner in ("", "raw", "raw/gzip", "gzip")]
        prefix, test = (EMNIST, "test") if name == "emnist" else ("", "t10k")
        files = {TRAIN: f"{prefix}train-{idx.IMAGES}", TEST: f"{prefix}{test}-{idx.IMAGES}"}
    elif task.layout != "svhn":
        return None
    sources = {}
    for split, stem in files.items():
        paths = [place / f"{stem}{end}" for place in places for end in ends]
        present = [path for path in paths if path.is_file()]
        if present:
            sources[split] = present[0]
    for path in sources.values() if task.layout == "idx" else ():
        idx.labels_beside(path)
    return Local(kind, sources, {}, task.classes) if sources else None


def _listed(folder: Path, task: ImageTask) -> Local | None:
    """Images with the lists of their authors."""
    if task.layout is None or task.layout not in LAYOUTS:
        return None
    lists = lists_of(task.layout, folder)
    if not lists:
        return None
    names = ClassNames(task)
    numbered = {split: _numbers(rows, names, folder) for split, rows in lists.items()}
    return Local(f"the authors' lists of {task.layout}", {}, numbered, task.classes)


def _numbers(rows: Sequence[Listed], names: ClassNames, folder: Path) -> list[tuple[Path, int]]:
    known: dict[str | int, int] = {}
    for _, label in rows:
        if label not in known:
            known[label] = label if isinstance(label, int) else names.number(label, folder)
    count = len(names.task.classes)
    wrong = next((number for number in known.values() if not 0 <= number < count), None)
    if wrong is not None:
        raise DataError(
            f"a list has the class {wrong + 1} of {count}",
            source=folder,
            remedy="get the data anew, as its authors publish it",
        )
    absent = [path for path, _ in rows if not path.is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(rows)} images of its lists are not there, {absent[0]} for one",
            source=folder,
            remedy="unpack all images of the data set",
        )
    return [(path, known[label]) for path, label in rows]


def _unread(name: str, folder: Path, task: ImageTask) -> DataError:
    """The error for a folder of no layout that is read."""
    if task.layout == "cifar" and any((folder / mark).exists() for mark in PICKLED):
        return DataError(
            "refused: CIFAR's python files are pickles, which can run code",
            source=folder,
            remedy=f"save the images as {name}/train/CLASS/*.png and {name}/test/CLASS/*.png, or "
            "leave --data (data=) out to take the data from the hub",
        )
    known = f"{name}/train/CLASS/*.png with {name}/test/CLASS/*.png, a folder of save_to_disk"
    lay = f", or the layout of torchvision's {task.spellings[0]}" if task.layout else ""
    return DataError(
        f"there is no data for the task {name} that is read here",
        source=folder,
        remedy=f"it takes {known}{lay if task.layout != 'cifar' else ''}",
    )
