"""evaluate(): measure models on the tasks of a suite."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from magmerge.errors import ParameterError
from magmerge.evaluation.batches import Prepared
from magmerge.evaluation.entries import WHOLE, chosen_tasks, read_suite, resolved
from magmerge.evaluation.experts import ScoreMemory, score_key
from magmerge.evaluation.running import Runner
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.evaluation.tasks import data_source, prepare_task
from magmerge.evaluation.weights import LiveModel, Measurable, Weights, open_weights
from magmerge.run import Progress
from magmerge.whole_file import check_free


def evaluate(
    model: Measurable,
    *,
    suite: str | Path | Suite,
    split: str = WHOLE,
    tasks: Sequence[str] | None = None,
    threads: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Measure a model on the tasks of a suite file: scores, 95 % intervals, and time.

    `model` is a folder, a file, a mapping from names to tensors, a torch module, which is run as it
    is, or a result of `merge`. `tasks` are names of some of the suite's tasks. `threads` batches
    are at work at once, and their number does not change the scores. The forward pass is in
    `dtype` (default float32) on `device` (default cpu); heads and log-probabilities are in
    float32. Experts that the suite names are measured too, once: their scores are remembered.
    With `out` the scores are written there as JSON. Raises MagmergeError's children.
    """
    if out is not None:
        check_free(Path(out), overwrite=overwrite)
    opened = suite if isinstance(suite, Suite) else open_suite(suite)
    scores = opened.evaluate(
        model,
        split=split,
        tasks=tasks,
        threads=threads,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    if out is not None:
        scores.save(out, overwrite=overwrite)
    return scores


def open_suite(path: str | Path) -> Suite:
    """Open a suite file for one model or many; raises MagmergeError's children for its faults."""
    return Suite(path)


class Suite:
    """An opened suite: each task is prepared once, and one live module takes all models in turn.

    Not for several threads at once.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entry = read_suite(self.path)
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
        device: str | None = None,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Measure one model; the arguments are those of `magmerge.evaluate`."""
        start = time.monotonic()
        names = chosen_tasks(self.entry, tasks, str(self.path))
        runner = Runner(self._live, threads=threads, device=device, dtype=dtype, progress=progress)
        weights = open_weights(model, self.base)
        prepared = {}
        for number, name in enumerate(names, start=1):
            prepared[name] = self._prepare(name, split, self.base or weights.folder)
            if progress is not None:
                progress("reading tasks", number, len(names))
        runner.check(weights)
        experts = self._experts(prepared, split, runner)
        scores = []
        for name, task in prepared.items():
            entry, began = self.entry.tasks[name], time.monotonic()
            found = runner.measure(weights, entry.metric, task)
            seconds, title = time.monotonic() - began, entry.title or name
            scores.append(TaskScore(name, title, entry.metric, *found, experts.get(name), seconds))
        spent = time.monotonic() - start
        return Scores(self.entry.suite, split, weights.name, tuple(scores), spent)

    def _prepare(self, name: str, split: str, folder: Path | None) -> Prepared:
        key = (name, split, folder)
        if key not in self._prepared:
            self._prepared[key] = prepare_task(name, self.entry, self.path, split, folder)
        return self._prepared[key]

    def _experts(
        self, prepared: Mapping[str, Prepared], split: str, runner: Runner
    ) -> dict[str, float]:
        """The scores of the tasks' experts, as far as the suite names any."""
        found, keys = {}, {}
        for name in prepared:
            entry = self.entry.tasks[name]
            if entry.expert_score is not None and split == WHOLE:
                found[name] = entry.expert_score
            elif entry.expert is not None:
                keys[name] = self._key(name, split, runner)
                known = self._memory.get(keys[name])
                if known is not None:
                    found[name] = known
        missing = [name for name in keys if name not in found]
        runner.total = sum(len(prepared[name].batches) for name in (*prepared, *missing))
        for name in missing:
            metric, expert = self.entry.tasks[name].metric, self._expert_weights(name)
            found[name] = runner.measure(expert, metric, prepared[name]).score
            self._memory.put(keys[name], found[name])
        return found

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


def _code(build: str) -> Path:
    """The file of the user's own function; one that does not exist where it cannot be told."""
    try:
        spec = find_spec(build.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    return Path((spec and spec.origin) or "unknown")
