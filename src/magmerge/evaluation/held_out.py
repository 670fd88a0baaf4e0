"""Rows that a search may look at: of validation, or some of training; never test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from magmerge.core.errors import ParameterError
from magmerge.data.rows import DataError, SampleDraw
from magmerge.data.sources import has_splits, split_names
from magmerge.data.splits import TRAIN, is_test_path, names_test
from magmerge.evaluation.entries import WHOLE, SuiteEntry, TaskEntry, path_of
from magmerge.evaluation.runner import Prepared
from magmerge.evaluation.task_scores import data_source, prepare_task

VALIDATION = ("validation", "valid", "val", "dev")
"""What a split of validation rows is called."""
CARVED = 256
"""Rows of a task that are taken from its training rows where it has no others."""


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Which rows a search looks at: of the split of this name, if one is named, at most so many of
    each task, drawn by `seed`. `whole`: data without splits is what is looked at, and no test data.
    """

    split: str | None = None
    rows: int | None = None
    seed: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class HeldOutTask:
    """A task's rows, ready to run. `scale` is what a mean loss is divided by; `rows` says which
    rows they are.
    """

    name: str
    title: str
    metric: str
    prepared: Prepared
    rows: str
    scale: float = 1.0


def held_out_tasks(
    suite: SuiteEntry, path: Path, folder: Path | None, choice: RowChoice
) -> dict[str, HeldOutTask]:
    """The rows of all tasks of a suite; `folder` has tokenizer or image processor.

    Raises DataError, ParameterError and their like: also where a task has nothing but test rows.
    """
    tasks: dict[str, HeldOutTask] = {}
    known: dict[str, tuple[Prepared, str]] = {}
    for name, entry in suite.tasks.items():
        if entry.question not in known:
            split = split_of(name, entry, path, choice)
            carved = split == TRAIN and choice.split is None and choice.rows is None
            draw = SampleDraw(
                name, CARVED if carved else choice.rows, choice.seed, allow_test=True, fewer=True
            )
            prepared = prepare_task(name, suite, path, split, folder, draw)
            known[entry.question] = prepared, _told(prepared, split, draw, choice)
        prepared, rows = known[entry.question]
        tasks[name] = HeldOutTask(name, entry.title or name, entry.metric, prepared, rows)
    return tasks


def split_of(name: str, entry: TaskEntry, path: Path, choice: RowChoice) -> str:
    """The split that is looked at: the one named, else of validation, else of training."""
    known = splits_of(entry, path)
    split = choice.split
    if split is None:
        split = next((s for s in (*VALIDATION, TRAIN) if s in known), None)
    if split is None and choice.whole and not known:
        split = WHOLE
    elif split is None:
        only = f"the splits {', '.join(known)}" if known else "data without splits, which is tested"
        raise ParameterError(
            f"the task {name} has no validation rows and no training rows: it has {only}",
            source=path,
            remedy="give the task both: data: {validation: FILE, test: FILE}; or name a split that "
            "may be looked at with --split (split=)",
        )
    elif names_test(split):
        raise _of_test(f"the split {split!r}", path)
    source, part = data_source(name, entry, split, path)
    own = source.rpartition(":")[2] if ":" in source and part is None else ""
    if is_test_path(Path(Path(source).name)) or names_test(own):
        raise _of_test("this path", source)
    return split


def splits_of(entry: TaskEntry, path: Path) -> tuple[str, ...]:
    """The splits of a task's data by name; of a data set known by its name the usual ones."""
    if isinstance(entry.data, Mapping):
        return tuple(entry.data)
    source = path_of(path.parent, entry.data)
    names = split_names(source)
    return names or ((VALIDATION[0],) if has_splits(source) else ())


def _told(prepared: Prepared, split: str, draw: SampleDraw, choice: RowChoice) -> str:
    """Which rows these are, in words."""
    of = "the file" if choice.whole and split == WHOLE else f"its {split} split"
    if draw.samples is None or prepared.count < draw.samples:
        return f"all {prepared.count} rows of {of}"
    return f"{prepared.count} rows of {of}, drawn by seed {draw.seed}"


def _of_test(what: str, source: object) -> DataError:
    return DataError(
        f"{what} names the test split, and a search never looks at test rows: what is chosen by "
        "them can no longer be measured on them",
        source=source,
        remedy="name validation or training rows; measure the best on test rows with magmerge "
        "evaluate when the search is done",
    )
