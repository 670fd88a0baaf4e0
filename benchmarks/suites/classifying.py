"""Make the experts of a suite of classifiers: head, fine-tuning, measures and files of each."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from scripts.demo_assets.sources import Source
from torch import Tensor, nn

from .finetune import Features, Recipe, accuracy, all_features, fine_tune, has_matrix_unit
from .probe import Head, Labelled
from .storing import Entry, Layout, classifier_entry, save_head, write_suite

SIZES = {"test": 400, "validation": 200, "calibration": 64, "train": 1600}
MEASURED = ("validation", "test")


@dataclass(frozen=True)
class Assignment:
    """One task of a suite: what it is, and how its expert is trained."""

    title: str
    package: Source
    classes: int
    recipe: Recipe
    splits: Callable[[], dict[str, Labelled]]
    """Makes the splits, and stores all but the training data."""


@dataclass(frozen=True)
class Kind:
    """How the models of a suite are made, fed and written."""

    model: dict[str, str]
    features: Features
    head: Callable[[Callable[[Tensor], Tensor], Labelled, int], Head]
    """From the frozen base's features, data and number of classes to a task's head."""
    load: Callable[[Path], nn.Module]
    save: Callable[[nn.Module, Path], None]
    suffix: str
    fields: dict[str, str]
    extra: Entry
    base_sha256: str
    """Of the file or package that the base model is from."""


def make_experts(layout: Layout, kind: Kind, assignments: dict[str, Assignment]) -> None:
    """Make every expert that is not made yet; suite.yaml grows with them."""
    tasks: dict[str, Entry] = {}
    for task, assignment in assignments.items():
        entry = layout.made().get(task)
        if entry is None:
            entry = make_expert(layout, kind, task, assignment)
            layout.record(task, entry)
        print(report(task, entry), flush=True)
        tasks[task] = classifier_entry(task, assignment.title, kind.suffix, kind.fields)
        write_suite(layout, {"model": kind.model, **kind.extra}, tasks)


def make_expert(layout: Layout, kind: Kind, task: str, assignment: Assignment) -> Entry:
    """Fit the head on the frozen base, fine-tune both, store them, and return the record."""
    started = time.monotonic()
    splits = assignment.splits()
    body = kind.load(layout.base)
    train = splits["train"]
    first = kind.head(partial(all_features, body, kind.features), train, assignment.classes)
    probed = {split: accuracy(body, first, kind.features, splits[split]) for split in MEASURED}
    head = fine_tune(body, first, kind.features, train, assignment.recipe)
    shutil.rmtree(layout.expert(task), ignore_errors=True)
    kind.save(body, layout.expert(task))
    save_head(head, layout.head(task))
    expert = {split: accuracy(body, head, kind.features, splits[split]) for split in MEASURED}
    base = probed
    if not torch.equal(head.weight, first.weight):
        body = kind.load(layout.base)
        base = {split: accuracy(body, head, kind.features, splits[split]) for split in MEASURED}
    return {
        "title": assignment.title,
        "seconds": round(time.monotonic() - started, 1),
        "sizes": {split: len(data.labels) for split, data in splits.items()},
        "classes": assignment.classes,
        "base_accuracy": base,
        "probe_accuracy": probed,
        "expert_accuracy": expert,
        "recipe": asdict(assignment.recipe),
        "matrix_unit": has_matrix_unit(),
        "package": assignment.package.title,
        "package_sha256": assignment.package.sha256,
        "base_sha256": kind.base_sha256,
    }


def report(task: str, entry: Entry) -> str:
    """One line: the task, how long it took, and test accuracy of base and expert."""
    return (
        f"{task}: {entry['seconds']:.0f} s, base {entry['base_accuracy']['test']:.3f}, "
        f"probe {entry['probe_accuracy']['test']:.3f}, "
        f"expert {entry['expert_accuracy']['test']:.3f}"
    )
