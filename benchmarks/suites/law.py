"""The law of a suite: base < average < tsv_m < experts, and TIES not below the average.

A suite that breaks it shows nothing about merging: its experts have left the base's basin, or have
nothing to gain.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import magmerge
from magmerge.evaluation.entries import path_of
from magmerge.evaluation.live_model import Hardware, LiveModel, Measurable, open_weights
from magmerge.evaluation.runner import Prepared, Runner
from magmerge.evaluation.task_scores import prepare_task
from magmerge.evaluation.task_suite import Suite, open_suite

METHODS = ("average", "ties", "tsv_m")
ORDER = ("base", "average", "tsv_m", "experts")
THREADS = 1
NORMAL = 1.96
Right = dict[str, Tensor]
"""Of each task, which test rows are answered right."""


class BrokenLawError(Exception):
    """A suite whose merges do not behave."""


class Judge:
    """An opened suite's tasks of accuracy, and one live module that all models take in turn."""

    def __init__(self, folder: Path, split: str = "test") -> None:
        self.suite: Suite = open_suite(folder / "suite.yaml", allow_code=True)
        assert self.suite.base is not None
        self.base = self.suite.base
        entry, path = self.suite.entry, self.suite.path
        self.tasks: dict[str, Prepared] = {
            name: prepare_task(name, entry, path, split, self.base)
            for name, task in entry.tasks.items()
            if task.metric == "accuracy"
        }
        self.experts = {
            name: Path(path_of(folder, str(entry.tasks[name].expert))) for name in self.tasks
        }
        self._live = LiveModel(entry.model, self.base)

    def right(self, model: Measurable, names: list[str] | None = None) -> Right:
        """What a model answers right."""
        setting = Hardware(threads=THREADS)
        module = self._live.put(open_weights(model, self.base), setting)
        runner = Runner([self._live], setting, 0)
        found = {}
        for name in names or self.tasks:
            task = self.tasks[name]
            assert task.labels is not None
            found[name] = runner.answers([module], task)[0][:, 0].long() == task.labels
        return found

    def merged(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """The merge of all experts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            found = magmerge.merge(
                base=self.base, experts=self.experts, method=method, params=params,
                threads=THREADS, memory="8GB",
            )  # fmt: skip
        return dict(found.state_dict())

    def own(self) -> Right:
        """What each expert answers right on its own task."""
        found: Right = {}
        for name, expert in self.experts.items():
            found |= self.right(expert, [name])
        return found

    def measure(self) -> Iterator[tuple[str, Right]]:
        """Base, merges and experts in turn."""
        yield "base", self.right(self.base)
        for method in METHODS:
            yield method, self.right(self.merged(method))
        yield "experts", self.own()


def hold_to_law(folder: Path) -> dict[str, Any]:
    """Measure a suite's base, merges and experts, print them, and return the accuracies.

    Raises BrokenLawError, after the table, where the suite does not behave.
    """
    judge = Judge(folder)
    rows = {}
    for name, right in judge.measure():
        rows[name] = right
        print(f"{folder.name}: {name} {100 * mean(right):.1f}", flush=True)
    difference, error = paired(rows["ties"], rows["average"])
    found = {
        "mean": {name: mean(right) for name, right in rows.items()},
        "tasks": {
            task: {name: float(right[task].double().mean()) for name, right in rows.items()}
            for task in judge.tasks
        },
        "ties - average": [difference - NORMAL * error, difference + NORMAL * error],
        "cosine": cosine(judge.base, judge.experts),
    }
    print(as_table(found), flush=True)
    check(folder.name, found)
    return found


def check(name: str, found: Mapping[str, Any]) -> None:
    """Raise BrokenLawError unless the order holds."""
    scores = found["mean"]
    ordered = [scores[one] for one in ORDER]
    if any(low >= high for low, high in itertools.pairwise(ordered)):
        raise BrokenLawError(f"suite {name}: {' < '.join(ORDER)} does not hold: {scores}")
    if found["ties - average"][1] < 0:
        raise BrokenLawError(f"suite {name}: ties is below average: {found['ties - average']}")


def mean(right: Right) -> float:
    """Mean accuracy over the tasks."""
    return statistics.mean(float(rows.double().mean()) for rows in right.values())


def paired(one: Right, other: Right) -> tuple[float, float]:
    """The difference of two models' mean accuracies on the same rows, and its standard error."""
    differences = [one[name].double() - other[name].double() for name in one]
    variance = sum(float(rows.var()) / len(rows) for rows in differences)
    centre = statistics.mean(float(rows.mean()) for rows in differences)
    return centre, math.sqrt(variance) / len(differences)


def cosine(base: Path, experts: Mapping[str, Path]) -> float:
    """Mean cosine of the experts' task vectors, over all pairs, in float64."""
    origin = magmerge.open_checkpoint(base)
    opened = [open_weights(path, base).read() for path in experts.values()]
    gram = torch.zeros(len(opened), len(opened), dtype=torch.float64)
    for name in origin.specs:
        start = origin.read(name)
        if start.is_floating_point() and all(name in expert for expert in opened):
            vectors = torch.stack([(one[name] - start).flatten() for one in opened]).double()
            gram += vectors @ vectors.T
    lengths = gram.diagonal().sqrt()
    pairs = torch.triu_indices(len(opened), len(opened), 1)
    return float((gram / (lengths[:, None] * lengths))[*pairs].mean())


def as_table(found: Mapping[str, Any]) -> str:
    """Accuracies in percent: a row for each task, and their means."""
    names = list(found["mean"])
    lines = ["task".ljust(14) + "".join(name.rjust(9) for name in names)]
    for task, scores in {**found["tasks"], "mean": found["mean"]}.items():
        lines.append(task.ljust(14) + "".join(f"{100 * scores[name]:9.1f}" for name in names))
    low, high = found["ties - average"]
    lines.append(f"ties - average: {100 * low:.1f} to {100 * high:.1f} (95 %, paired rows)")
    lines.append(f"mean cosine of task vectors: {found['cosine']:.3f}")
    return "\n".join(lines)
