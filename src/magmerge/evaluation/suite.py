"""Suites: models measured on tasks, one or many in a pass over the data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from magmerge.errors import ParameterError
from magmerge.evaluation.batches import Prepared
from magmerge.evaluation.decoding import Kept
from magmerge.evaluation.entries import WHOLE, SuiteEntry, chosen_tasks, read_suite, resolved
from magmerge.evaluation.experts import ScoreMemory, score_key
from magmerge.evaluation.likeness import same_preparation
from magmerge.evaluation.running import Runner
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.evaluation.tasks import Measured, data_source, measured, prepare_task
from magmerge.evaluation.weights import LiveModel, Measurable, Weights, open_weights
from magmerge.machine import DEFAULT_MEMORY as DEFAULT
from magmerge.machine import Progress


def open_suite(path: str | Path, *, allow_code: bool = False) -> Suite:
    """Open a suite file for one model or many; raises MagmergeError's children for its faults.

    A suite that names code to run is refused unless `allow_code`.
    """
    return Suite(path, allow_code=allow_code)


class Lot(NamedTuple):
    """Models whose texts and images are prepared alike, the tasks so prepared, and the experts."""

    models: dict[str, Weights]
    tasks: dict[str, Prepared]
    experts: dict[str, float]
    missing: dict[str, str | None]


Found = dict[str, tuple[Measured, float]]
"""By task: what was measured, and the seconds that it took."""


class Suite:
    """An opened suite: each task is prepared once, and one live module takes all models in turn.

    `path` is a suite file; with `entry`, which a program made, it is what messages call the suite,
    and paths of `entry` are relative to its folder. Not for several threads at once.
    """

    def __init__(
        self, path: str | Path, entry: SuiteEntry | None = None, *, allow_code: bool = False
    ) -> None:
        self.path = Path(path)
        self.entry = read_suite(self.path) if entry is None else entry
        build = self.entry.model.build
        if build is not None and not allow_code:
            raise ParameterError(
                f"it names code to run: model.build is {build}",
                source=self.path,
                remedy="read that code, and if you trust it allow it with --allow-code "
                "(allow_code=True)",
            )
        base = self.entry.base
        self.base = None if base is None else Path(resolved(self.path.parent, base))
        if self.base is not None and not self.base.is_dir():
            raise ParameterError(
                "the suite's base is no folder",
                source=self.base,
                remedy=f"correct base in {self.path}",
            )
        self._live = LiveModel(self.entry.model, self.base)
        self._prepared: dict[tuple[str, str, Path | None], Prepared] = {}
        self._kept = Kept()
        self._memory = ScoreMemory()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.entry.tasks)

    def evaluate(
        self,
        model: Measurable,
        *,
        split: str = WHOLE,
        tasks: Sequence[str] | None = None,
        threads: int | None = None,
        workers: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        memory: str | int = DEFAULT,
        progress: Progress | None = None,
    ) -> Scores:
        """Measure one model; the arguments are those of `magmerge.evaluate`."""
        found = self.evaluate_all(
            {"the model": model},
            split=split,
            tasks=tasks,
            threads=threads,
            workers=workers,
            device=device,
            dtype=dtype,
            memory=memory,
            progress=progress,
        )
        return found["the model"]

    def evaluate_all(
        self,
        models: Mapping[str, Measurable],
        *,
        split: str = WHOLE,
        tasks: Sequence[str] | None = None,
        threads: int | None = None,
        workers: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        memory: str | int = DEFAULT,
        progress: Progress | None = None,
    ) -> dict[str, Scores]:
        """Measure several models in as few passes over the data as `memory` allows.

        The scores are those of `evaluate` for each model alone, bit for bit. As many models as fit
        into `memory` are live at once, at least one. Each batch is decoded once for all of them,
        and layers below the first in which they differ run once. The seconds of a score are an
        equal share of its pass.
        """
        start = time.monotonic()
        if not models:
            raise ParameterError("there is no model", remedy="give one at least")
        names = chosen_tasks(self.entry, tasks, str(self.path))
        runner = Runner(
            self._live, self._kept, threads=threads, workers=workers, device=device,
            dtype=dtype, memory=memory, progress=progress,
        )  # fmt: skip
        opened = {name: open_weights(model, self.base) for name, model in models.items()}
        lots = [
            self._lot(members, names, split, runner, progress) for members in self._homes(opened)
        ]
        runner.total = sum(map(_batches, lots)) + sum(map(self._expert_batches, lots))
        found: dict[str, Found] = {}
        for lot in lots:
            found |= self._measure(lot, runner)
        experts = {name: lot.experts for lot in lots for name in lot.models}
        spent = (time.monotonic() - start) / len(models)
        return {
            name: self._scores(split, opened[name].name, found[name], experts[name], spent)
            for name in models
        }

    def _homes(self, opened: Mapping[str, Weights]) -> list[dict[str, Weights]]:
        """The models by the folder that their texts, images and module come from.

        Folders whose files say the same stand for each other.
        """
        if self.base is not None:
            return [dict(opened)]
        lots: list[dict[str, Weights]] = []
        for name, weights in opened.items():
            for members in lots:
                first = next(iter(members.values()))
                if same_preparation(first, weights):
                    members[name] = replace(weights, folder=first.folder)
                    break
            else:
                lots.append({name: weights})
        return lots

    def _lot(
        self,
        members: dict[str, Weights],
        names: Sequence[str],
        split: str,
        runner: Runner,
        progress: Progress | None,
    ) -> Lot:
        """Everything read and checked that can be before the long work."""
        folder, prepared = self.base or next(iter(members.values())).folder, {}
        for number, name in enumerate(names, start=1):
            prepared[name] = self._prepare(name, split, folder)
            if progress is not None:
                progress("reading tasks", number, len(names))
        runner.check(list(members.values()))
        experts: dict[str, float] = {}
        missing: dict[str, str | None] = {}
        for name in names:
            entry = self.entry.tasks[name]
            if entry.expert_score is not None and split == WHOLE:
                experts[name] = entry.expert_score
            elif entry.expert is not None:
                key = self._key(name, split, runner)
                known = self._memory.get(key)
                if known is None:
                    missing[name] = key
                else:
                    experts[name] = known
        return Lot(members, prepared, experts, missing)

    def _prepare(self, name: str, split: str, folder: Path | None) -> Prepared:
        # Tasks that differ in their metric alone are one task for the model.
        key = (self.entry.tasks[name].question, split, folder)
        if key not in self._prepared:
            self._prepared[key] = prepare_task(name, self.entry, self.path, split, folder)
        return self._prepared[key]

    def _measure(self, lot: Lot, runner: Runner) -> dict[str, Found]:
        """The experts whose scores are not known, then the models, group by group."""
        runner.begin(lot.tasks.values())
        self._measure_experts(lot, runner)
        found: dict[str, Found] = {name: {} for name in lot.models}
        left = list(lot.models)
        for group in runner.groups(list(lot.models.values())):
            members, left = left[: len(group.modules)], left[len(group.modules) :]
            for names in _by_question(lot.tasks):
                began, task = time.monotonic(), lot.tasks[names[0]]
                answers = runner.answers(group, task)
                seconds = (time.monotonic() - began) / len(members)
                for member, answer in zip(members, answers, strict=True):
                    for name in names:
                        share = seconds if name == names[0] else 0.0
                        metric = self.entry.tasks[name].metric
                        found[member][name] = measured(metric, task, answer), share
        return found

    def _measure_experts(self, lot: Lot, runner: Runner) -> None:
        answers: dict[tuple[str, int], Tensor] = {}
        for name, key in lot.missing.items():
            task, metric = lot.tasks[name], self.entry.tasks[name].metric
            place = (self._expert(name), id(task))
            if place not in answers:
                answers[place] = runner.answer(self._expert_weights(name), task)
            lot.experts[name] = measured(metric, task, answers[place]).score
            self._memory.put(key, lot.experts[name])

    def _expert_batches(self, lot: Lot) -> int:
        unique = {(self._expert(name), id(lot.tasks[name])): name for name in lot.missing}
        return sum(len(lot.tasks[name].batches) for name in unique.values())

    def _scores(
        self, split: str, model: str, found: Found, experts: Mapping[str, float], seconds: float
    ) -> Scores:
        scores = []
        for name, entry in self.entry.tasks.items():
            if name in found:
                values, spent = found[name]
                title, expert = entry.title or name, experts.get(name)
                scores.append(TaskScore(name, title, entry.metric, *values, expert, spent))
        return Scores(self.entry.suite, split, model, tuple(scores), seconds)

    def _expert_weights(self, name: str) -> Weights:
        return open_weights(self._expert(name), self.base)

    def _expert(self, name: str) -> str:
        return resolved(self.path.parent, self.entry.tasks[name].expert or "")

    def _key(self, name: str, split: str, runner: Runner) -> str | None:
        entry, build = self.entry.tasks[name], self.entry.model.build
        source, part = data_source(name, entry, split, self.path)
        files = [Path(source)]
        if entry.head is not None:
            files.append(Path(resolved(self.path.parent, entry.head)))
        if build is not None:
            files.append(_code(build))
        settings = (part, runner.dtype, runner.device)
        return score_key(name, self.entry, files, self._expert(name), self.base, settings)


def _by_question(tasks: Mapping[str, Prepared]) -> list[list[str]]:
    """The names of tasks, those together whose answers are the same."""
    found: dict[int, list[str]] = {}
    for name, task in tasks.items():
        found.setdefault(id(task), []).append(name)
    return list(found.values())


def _batches(lot: Lot) -> int:
    unique = {id(task): len(task.batches) for task in lot.tasks.values()}
    return len(lot.models) * sum(unique.values())


def _code(build: str) -> Path:
    """The file of the user's own function; one that does not exist where it cannot be told."""
    try:
        spec = find_spec(build.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    return Path((spec and spec.origin) or "unknown")
