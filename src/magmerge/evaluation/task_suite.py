"""Suites: models measured on tasks, as many in a pass over the data as memory allows."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.formats.keys import CONFIG
from magmerge.checkpoints.digests import DigestMemory, Memory, default_path
from magmerge.core.errors import ParameterError
from magmerge.core.version import __version__
from magmerge.evaluation.entries import WHOLE, SuiteEntry, path_of, read_suite, task_names
from magmerge.evaluation.live_model import (
    Hardware,
    LiveModel,
    Measurable,
    ModelWeights,
    open_weights,
)
from magmerge.evaluation.runner import Prepared, Runner
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.evaluation.task_scores import data_source, prepare_task, score_of

DONATED = ("*.json", "*.txt", "*.model", "*.spm")
"""Files beside the weights that decide what a model makes of texts and images."""


def open_suite(path: str | Path, *, allow_code: bool = False) -> Suite:
    """Open a suite file for one model or many; raises MagmergeError's children for its faults.

    A suite that names code to run is refused unless `allow_code`.
    """
    return Suite(path, allow_code=allow_code)


class Lot(NamedTuple):
    """Models whose texts and images one folder prepares, the tasks so prepared, and the experts.

    `experts` are scores by task; `unknown` the keys of those that are not remembered, by the
    expert's path and the task.
    """

    models: dict[str, ModelWeights]
    tasks: dict[str, Prepared]
    experts: dict[str, float]
    unknown: dict[str, dict[str, str | None]]

    @property
    def batches(self) -> int:
        """How many batches the models and the unknown experts go through."""
        own = [set(self.tasks)] * len(self.models) + [set(keys) for keys in self.unknown.values()]
        # Tasks that differ in their metric alone are one.
        parts = [{id(self.tasks[name]): self.tasks[name] for name in names} for names in own]
        return sum(len(task.batches) for part in parts for task in part.values())


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
        self.base = None if base is None else Path(path_of(self.path.parent, base))
        if self.base is not None and not self.base.is_dir():
            raise ParameterError(
                "the suite's base is no folder",
                source=self.base,
                remedy=f"correct base in {self.path}",
            )
        self._lives = [LiveModel(self.entry.model, self.base)]
        self._prepared: dict[tuple[str, str, Path | None], Prepared] = {}
        digests = default_path()
        self._memory: Memory[float] = Memory(
            None if digests is None else digests.with_name("expert-scores.json"),
            lambda score: isinstance(score, float) and math.isfinite(score),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.entry.tasks)

    def runner(self, machine: Hardware, total: int) -> Runner:
        """What runs models of this suite; `total` batches are what progress counts to."""
        return Runner(self._lives, machine, total)

    def evaluate(self, model: Measurable, **options: Any) -> Scores:
        """Measure one model; the options are those of `evaluate_all`."""
        return self.evaluate_all({"the model": model}, **options)["the model"]

    def evaluate_all(
        self,
        models: Mapping[str, Measurable],
        *,
        split: str = WHOLE,
        tasks: Sequence[str] | None = None,
        **machine: Any,
    ) -> dict[str, Scores]:
        """Measure several models in as few passes over the data as memory allows.

        `machine` are fields of `Hardware`: threads, workers, device, dtype, memory, progress. The
        scores are those of `evaluate` for each model alone, bit for bit. As many models as fit into
        `memory` are live at once, at least one, and each batch is decoded once for all of them. The
        seconds of a score are an equal share of its pass.
        """
        start, setting = time.monotonic(), Hardware(**machine)
        if not models:
            raise ParameterError("there is no model", remedy="give one at least")
        names = task_names(self.entry, tasks, str(self.path))
        opened = {name: open_weights(model, self.base) for name, model in models.items()}
        folders: dict[Path | None, dict[str, ModelWeights]] = {}
        for name, weights in opened.items():
            folders.setdefault(self.base or weights.folder, {})[name] = weights
        lots = [
            self._lot(folder, members, names, split, setting) for folder, members in folders.items()
        ]
        runner = self.runner(setting, sum(lot.batches for lot in lots))
        scores: dict[str, tuple[TaskScore, ...]] = {}
        for lot in lots:
            for path, keys in lot.unknown.items():
                weights = open_weights(path, self.base)
                for score in self._measure([weights], lot, [*keys], runner)[0]:
                    lot.experts[score.task] = score.score
                    self._memory.put(keys[score.task], score.score)
                self._memory.save()
            rows = self._measure([*lot.models.values()], lot, names, runner)
            scores |= zip(lot.models, rows, strict=True)
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
    ) -> Lot:
        """Everything read and checked that can be before the long work."""
        lot = Lot(models, {}, {}, {})
        for number, name in enumerate(names, start=1):
            # Tasks that differ in their metric alone are one task for the model.
            task = (self.entry.tasks[name].question, split, folder)
            if task not in self._prepared:
                self._prepared[task] = prepare_task(name, self.entry, self.path, split, folder)
            lot.tasks[name] = self._prepared[task]
            machine.tell("reading tasks", number, len(names))
        live, (first, *others) = self._lives[0], models.values()
        live.put(first, machine)
        for weights in others:
            live.check(weights, machine)
        for name in names:
            entry = self.entry.tasks[name]
            if entry.expert_score is not None and split == WHOLE:
                lot.experts[name] = entry.expert_score
            elif entry.expert is not None:
                path = path_of(self.path.parent, entry.expert)
                key = self._key(name, path, split, machine)
                known = self._memory.get(key)
                if known is None:
                    lot.unknown.setdefault(path, {})[name] = key
                else:
                    lot.experts[name] = known
        return lot

    def _measure(
        self, models: Sequence[ModelWeights], lot: Lot, names: Sequence[str], runner: Runner
    ) -> list[tuple[TaskScore, ...]]:
        """Each model's scores on the tasks of these names, beside those of their experts."""
        rows: list[tuple[TaskScore, ...]] = []
        questions: dict[int, list[str]] = {}
        for name in names:
            questions.setdefault(id(lot.tasks[name]), []).append(name)
        for modules in runner.groups(models):
            members: list[dict[str, TaskScore]] = [{} for _ in modules]
            for group in questions.values():
                began, task = time.monotonic(), lot.tasks[group[0]]
                answers = runner.answers(modules, task)
                share = (time.monotonic() - began) / len(modules)
                for member, answer in zip(members, answers, strict=True):
                    for name in group:
                        entry = self.entry.tasks[name]
                        score, low, high = score_of(entry.metric, task, answer)
                        member[name] = TaskScore(
                            name, entry.title or name, entry.metric, score, low, high, task.count,
                            lot.experts.get(name), share if name == group[0] else 0.0,
                        )  # fmt: skip
            rows += [tuple(member[name] for name in names) for member in members]
        return rows

    def _key(self, name: str, expert: str, split: str, machine: Hardware) -> str | None:
        """A digest of all that an expert's score depends on; None where some of it is no file."""
        entry, build, memory = self.entry.tasks[name], self.entry.model.build, DigestMemory()
        source, part = data_source(name, entry, split, self.path)
        settings = (torch.__version__, part, machine.format, machine.device)
        parts: list[Any] = [__version__, *map(str, settings)]
        parts.append(self.entry.model_dump(mode="json", exclude={"tasks", "suite", "base"}))
        outside = {"title", "expert", "expert_score", "head", "data"}
        parts.append(entry.model_dump(mode="json", exclude=outside))
        paths = [Path(source)]
        if entry.head is not None:
            paths.append(Path(path_of(self.path.parent, entry.head)))
        if build is not None:
            paths.append(_code(build))
        try:
            paths += open_checkpoint(expert).files
            config = Path(expert) / CONFIG
            paths += [config] if config.is_file() else []
            if self.base is not None:
                paths += open_checkpoint(self.base).files
                donated = (self.base.glob(pattern) for pattern in DONATED)
                paths += sorted(path for group in donated for path in group)
            for path in paths:
                if not path.exists():
                    return None
                inner = sorted(path.rglob("*")) if path.is_dir() else [path]
                parts += [[file.name, memory.digest(file)] for file in inner if file.is_file()]
        except OSError:
            return None
        memory.save()
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code(build: str) -> Path:
    """The file of the user's own function; one that does not exist where it cannot be told."""
    try:
        spec = find_spec(build.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    return Path((spec and spec.origin) or "unknown")
