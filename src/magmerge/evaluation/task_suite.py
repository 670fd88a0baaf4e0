"""Suites: models measured on tasks, as many in a pass over the data as memory allows."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.formats.lora_config import CONFIG
from magmerge.checkpoints.digests import DigestMemory, Memory, default_path
from magmerge.core.errors import ParameterError
from magmerge.core.machine import Progress
from magmerge.core.version import __version__
from magmerge.evaluation.entries import WHOLE, SuiteEntry, chosen_tasks, read_suite, resolved
from magmerge.evaluation.live_model import LiveModel, Measurable, ModelWeights, open_weights
from magmerge.evaluation.runner import Hardware, Prepared, Runner
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.evaluation.task_scores import Measured, data_source, measured, prepare_task

DONATED = ("*.json", "*.txt", "*.model", "*.spm")
"""Files beside the weights that decide what a model makes of texts and images."""


def score_memory() -> Memory[float]:
    """Experts' scores by digest, in a small file beside that of the digests."""
    digests = default_path()
    path = None if digests is None else digests.with_name("expert-scores.json")
    return Memory(path, lambda score: isinstance(score, float) and math.isfinite(score))


def score_key(
    task: str,
    suite: SuiteEntry,
    files: Iterable[Path],
    expert: str,
    base: Path | None,
    settings: tuple[Any, ...],
) -> str | None:
    """A digest of all that an expert's score depends on; None where some of it is no file.

    `files` are the head, the data (a file or a folder) and the user's own code; `settings` what
    else the score depends on. The suite's settings of the task are added, and the versions.
    """
    memory = DigestMemory()
    entry = suite.tasks[task]
    parts: list[Any] = [__version__, str(torch.__version__), *map(str, settings)]
    parts.append(suite.model_dump(mode="json", exclude={"tasks", "suite", "base"}))
    parts.append(
        entry.model_dump(mode="json", exclude={"title", "expert", "expert_score", "head", "data"})
    )
    try:
        paths = [*files, *open_checkpoint(expert).files, Path(expert) / CONFIG]
        if base is not None:
            paths += [*open_checkpoint(base).files]
            paths += sorted(path for pattern in DONATED for path in base.glob(pattern))
        for path in paths:
            if path.name == CONFIG and not path.is_file():
                continue
            if not path.exists():
                return None
            inner = sorted(path.rglob("*")) if path.is_dir() else [path]
            parts += [[file.name, memory.digest(file)] for file in inner if file.is_file()]
    except OSError:
        return None
    memory.save()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_suite(path: str | Path, *, allow_code: bool = False) -> Suite:
    """Open a suite file for one model or many; raises MagmergeError's children for its faults.

    A suite that names code to run is refused unless `allow_code`.
    """
    return Suite(path, allow_code=allow_code)


class Lot(NamedTuple):
    """Models whose texts and images one folder prepares, the tasks so prepared, and the experts.

    `experts` are scores by task; `unknown` the keys, by task, of those that are not remembered.
    """

    models: dict[str, ModelWeights]
    tasks: dict[str, Prepared]
    experts: dict[str, float]
    unknown: dict[str, str | None]


class Suite:
    """An opened suite: each task is prepared once, and live modules take all models in turn.

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
        self._lives = [LiveModel(self.entry.model, self.base)]
        self._prepared: dict[tuple[str, str, Path | None], Prepared] = {}
        self._memory = score_memory()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.entry.tasks)

    def evaluate(self, model: Measurable, **options: Any) -> Scores:
        """Measure one model; the options are those of `evaluate_all`."""
        return self.evaluate_all({"the model": model}, **options)["the model"]

    def evaluate_all(
        self,
        models: Mapping[str, Measurable],
        *,
        split: str = WHOLE,
        tasks: Sequence[str] | None = None,
        progress: Progress | None = None,
        **machine: Any,
    ) -> dict[str, Scores]:
        """Measure several models in as few passes over the data as memory allows.

        `machine` are fields of `Hardware`: threads, workers, device, dtype, memory. The scores are
        those of `evaluate` for each model alone, bit for bit. As many models as fit into `memory`
        are live at once, at least one, and each batch is decoded once for all of them. The seconds
        of a score are an equal share of its pass.
        """
        start, setting = time.monotonic(), Hardware(**machine)
        if not models:
            raise ParameterError("there is no model", remedy="give one at least")
        names = chosen_tasks(self.entry, tasks, str(self.path))
        opened = {name: open_weights(model, self.base) for name, model in models.items()}
        folders: dict[Path | None, dict[str, ModelWeights]] = {}
        for name, weights in opened.items():
            folders.setdefault(self.base or weights.folder, {})[name] = weights
        lots = [
            self._lot(folder, members, names, split, setting, progress)
            for folder, members in folders.items()
        ]
        runner = Runner(self._lives, setting, progress, sum(map(self._batches, lots)))
        scores: dict[str, tuple[TaskScore, ...]] = {}
        for lot in lots:
            for path, experts in self._unknown_experts(lot):
                weights = open_weights(path, self.base)
                for name, (value, _) in self._measure([weights], experts, runner)[0].items():
                    lot.experts[name] = value.score
                    self._memory.put(lot.unknown[name], value.score)
                self._memory.save()
            measures = self._measure(list(lot.models.values()), lot.tasks, runner)
            for name, own in zip(lot.models, measures, strict=True):
                scores[name] = tuple(self._scores(own, lot.experts))
        spent = (time.monotonic() - start) / len(models)
        return {
            name: Scores(self.entry.suite, split, weights.name, scores[name], spent)
            for name, weights in opened.items()
        }

    def _lot(
        self,
        folder: Path | None,
        models: dict[str, ModelWeights],
        names: Sequence[str],
        split: str,
        machine: Hardware,
        progress: Progress | None,
    ) -> Lot:
        """Everything read and checked that can be before the long work."""
        lot = Lot(models, {}, {}, {})
        for number, name in enumerate(names, start=1):
            lot.tasks[name] = self._prepare(name, split, folder)
            if progress is not None:
                progress("reading tasks", number, len(names))
        live, members = self._lives[0], list(models.values())
        live.put(members[0], machine.format, machine.device)
        for weights in members[1:]:
            live.check(weights, machine.format, machine.device)
        for name in names:
            entry = self.entry.tasks[name]
            if entry.expert_score is not None and split == WHOLE:
                lot.experts[name] = entry.expert_score
            elif entry.expert is not None:
                key = self._key(name, split, machine)
                known = self._memory.get(key)
                if known is None:
                    lot.unknown[name] = key
                else:
                    lot.experts[name] = known
        return lot

    def _prepare(self, name: str, split: str, folder: Path | None) -> Prepared:
        # Tasks that differ in their metric alone are one task for the model.
        key = (self.entry.tasks[name].question, split, folder)
        if key not in self._prepared:
            self._prepared[key] = prepare_task(name, self.entry, self.path, split, folder)
        return self._prepared[key]

    def _unknown_experts(self, lot: Lot) -> Iterator[tuple[str, dict[str, Prepared]]]:
        """The experts whose scores are not remembered, each with its tasks."""
        paths = {name: self._expert(name) for name in lot.unknown}
        for path in dict.fromkeys(paths.values()):
            yield path, {name: lot.tasks[name] for name in lot.unknown if paths[name] == path}

    def _measure(
        self, models: Sequence[ModelWeights], tasks: Mapping[str, Prepared], runner: Runner
    ) -> list[dict[str, tuple[Measured, float]]]:
        """For each model by task what was measured, and the seconds that it took."""
        measures: list[dict[str, tuple[Measured, float]]] = []
        for modules in runner.groups(models):
            members: list[dict[str, tuple[Measured, float]]] = [{} for _ in modules]
            for names in _by_question(tasks):
                began, task = time.monotonic(), tasks[names[0]]
                answers = runner.answers(modules, task)
                share = (time.monotonic() - began) / len(modules)
                for member, answer in zip(members, answers, strict=True):
                    for name in names:
                        value = measured(self.entry.tasks[name].metric, task, answer)
                        member[name] = value, share if name == names[0] else 0.0
            measures += members
        return measures

    def _batches(self, lot: Lot) -> int:
        """How many batches a lot's models and unknown experts go through."""
        own = {id(task): len(task.batches) for task in lot.tasks.values()}
        experts = [
            {id(t): len(t.batches) for t in of.values()} for _, of in self._unknown_experts(lot)
        ]
        return len(lot.models) * sum(own.values()) + sum(sum(of.values()) for of in experts)

    def _scores(
        self, measures: Mapping[str, tuple[Measured, float]], experts: Mapping[str, float]
    ) -> Iterator[TaskScore]:
        for name, entry in self.entry.tasks.items():
            if name in measures:
                values, spent = measures[name]
                title, expert = entry.title or name, experts.get(name)
                yield TaskScore(name, title, entry.metric, *values, expert, spent)

    def _expert(self, name: str) -> str:
        return resolved(self.path.parent, self.entry.tasks[name].expert or "")

    def _key(self, name: str, split: str, machine: Hardware) -> str | None:
        entry, build = self.entry.tasks[name], self.entry.model.build
        source, part = data_source(name, entry, split, self.path)
        files = [Path(source)]
        if entry.head is not None:
            files.append(Path(resolved(self.path.parent, entry.head)))
        if build is not None:
            files.append(_code(build))
        settings = (part, machine.format, machine.device)
        return score_key(name, self.entry, files, self._expert(name), self.base, settings)


def _by_question(tasks: Mapping[str, Prepared]) -> list[list[str]]:
    """The names of tasks, those together whose answers are the same."""
    groups: dict[int, list[str]] = {}
    for name, task in tasks.items():
        groups.setdefault(id(task), []).append(name)
    return list(groups.values())


def _code(build: str) -> Path:
    """The file of the user's own function; one that does not exist where it cannot be told."""
    try:
        spec = find_spec(build.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    return Path((spec and spec.origin) or "unknown")
