"""lm-evaluation-harness as an evaluator of language models: its tasks, its prompts, its metrics."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from magmerge.core.errors import MagmergeError, MagmergeWarning, ParameterError, UnknownNameError
from magmerge.core.errors import suggestion as near
from magmerge.core.extras import needed
from magmerge.engine.result import Result
from magmerge.evaluation.live_model import Hardware
from magmerge.evaluation.metrics import Z
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.live.modules import quiet_transformers

SUITE = "lm-evaluation-harness"
OFFLINE = ("connection", "offline", "localentrynotfound", "maxretry", "timeout", "hubhttp")
"""What names of errors hold that a missing network causes."""
SPREAD = "_stderr"


@dataclass(frozen=True, slots=True)
class LmEval:
    """What lm-evaluation-harness is asked for.

    `tasks` are names of its tasks, groups or tags; `include` is a folder with task files of one's
    own. `limit` rows of each task are measured (default: all), with `num_fewshot` examples before
    each (default: the task's own).
    """

    tasks: tuple[str, ...]
    include: str | Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    seed: int = 0

    @classmethod
    def of(cls, request: Sequence[str] | Mapping[str, Any]) -> LmEval:
        """From names of tasks, or from a mapping of fields; raises MagmergeError's children."""
        content = dict(request) if isinstance(request, Mapping) else {"tasks": request}
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise UnknownNameError(
                    f"lm_eval has no field {name!r}", remedy=near(str(name), known)
                )
        tasks = content.get("tasks") or ()
        content["tasks"] = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        question = cls(**content)
        if not question.tasks:
            raise ParameterError("no task is named", remedy="give one with --lm-eval (lm_eval=)")
        for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
            value = getattr(question, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ParameterError(f"{name} is {value!r}", remedy=f"give {least} or more")
        return question


def run_harness(
    models: Sequence[Any], question: LmEval, machine: Hardware, *, allow_code: bool = False
) -> list[Scores]:
    """Measure model folders on tasks of lm-evaluation-harness: a row for each task and metric.

    Models are loaded by its class for transformers, without remote code; task files of one's own,
    which can run code, are read only with `allow_code`. Intervals are the score
    and 1.96 of its standard errors on both sides. MissingExtraError where it is not installed,
    UnknownNameError for tasks it does not know, MagmergeError where a task's data cannot be had.
    """
    folders = [_folder(model) for model in models]
    if question.include is not None and not allow_code:
        # Functions that task files name, and templates in them, run as any code does.
        raise ParameterError(
            "task files of the harness can run code",
            source=question.include,
            remedy="read them, and if you trust them add --allow-code (allow_code=True)",
        )
    harness, all_scores = needed("lm_eval", "--lm-eval"), []
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    dtype = str(machine.format or torch.float32).removeprefix("torch.")
    with _quiet(machine):
        tasks = _task_index(question)
        for folder in folders:
            start = time.monotonic()
            model = {"pretrained": str(folder), "dtype": dtype, "trust_remote_code": False}
            with _failures(folder, question):
                results = harness.simple_evaluate(
                    model="hf",
                    model_args=model,
                    tasks=list(question.tasks),
                    task_manager=tasks,
                    num_fewshot=question.num_fewshot,
                    limit=question.limit,
                    batch_size=question.batch_size,
                    device=machine.device or "cpu",
                    log_samples=False,
                    bootstrap_iters=1000,
                    **dict.fromkeys(seeds, question.seed),
                )
            seconds = time.monotonic() - start
            rows = tuple(_rows(results, question.tasks, seconds))
            all_scores.append(Scores(SUITE, "", str(folder), rows, seconds))
    return all_scores


@contextmanager
def _quiet(machine: Hardware) -> Iterator[None]:
    """Without the harness's log and bars; the bar over its requests is told as progress."""
    tqdm: Any = import_module("tqdm").tqdm
    bars, log = import_module("datasets.utils"), logging.getLogger("lm_eval")

    class Bar(tqdm):  # type: ignore[misc]
        def display(self, *_: Any, **__: Any) -> None:
            if self.total:
                machine.tell("evaluating", min(self.n, self.total), self.total)

    def silent(items: Any = (), *_: Any, **__: Any) -> Any:
        return tqdm(items, disable=True)

    with ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)
        if not bars.are_progress_bars_disabled():
            bars.disable_progress_bars()
            stack.callback(bars.enable_progress_bars)
        for place, name, value in (
            ("lm_eval.models.huggingface", "tqdm", partial(Bar, file=StringIO())),
            ("lm_eval.api.task", "tqdm", silent),
            ("lm_eval.api.model", "tqdm", silent),
            # It asks git for the folder's commit, which complains to stderr where there is none.
            ("lm_eval.evaluator", "get_git_commit_hash", lambda: None),
        ):
            module = import_module(place)
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def _folder(model: Any) -> Path:
    """The model's folder; ParameterError for what is none."""
    path = model.path if isinstance(model, Result) else model
    if not isinstance(path, str | Path):
        raise ParameterError(
            f"lm-evaluation-harness takes a model folder, not a {type(model).__name__}",
            remedy="write the model to a folder first (out=)",
        )
    folder = Path(path)
    if not (folder / "config.json").is_file():
        what = "a file" if folder.is_file() else "no folder with a config.json"
        raise ParameterError(
            f"lm-evaluation-harness takes a model folder, and this is {what}",
            source=folder,
            remedy="give a folder with config, tokenizer and weights, as `magmerge merge` writes "
            "one; put an adapter on its base first",
        )
    return folder


def _task_index(question: LmEval) -> Any:
    """The harness's own list of tasks, with those of the folder; UnknownNameError for others."""
    if question.include is not None and not Path(question.include).is_dir():
        raise ParameterError(
            "it is no folder", source=question.include, remedy="name a folder of task files"
        )
    tasks = import_module("lm_eval.tasks")
    folder = None if question.include is None else str(question.include)
    try:
        if folder is not None:
            # The harness's own files are thousands, and take seconds to read.
            index = tasks.TaskManager(include_path=folder, include_defaults=False)
            if set(question.tasks) <= set(index.all_subtasks):
                return index
        index = tasks.TaskManager(include_path=folder)
    except Exception as error:
        raise ParameterError(
            f"its task files cannot be read: {_first_line(error)}",
            source=question.include,
            remedy="mend the file that it names",
        ) from error
    known = frozenset(index.all_tasks)
    for name in question.tasks:
        if name not in known:
            remedy = near(name, known)
            if not remedy.startswith("did you mean"):
                remedy = "`lm_eval ls tasks` lists all; --lm-eval-include FOLDER adds your own"
            raise UnknownNameError(f"{SUITE} has no task {name!r}", remedy=remedy)
    return index


def _rows(results: Mapping[str, Any], tasks: Sequence[str], seconds: float) -> Iterator[TaskScore]:
    """A row for each task and metric; a group without own scores gives those of its tasks."""
    table, members = results["results"], results.get("group_subtasks") or {}

    def with_scores(name: str) -> list[str]:
        """The task or group itself, or those of its members, that have scores."""
        if name in table and any(_metrics(table[name])):
            return [name]
        return [task for member in members.get(name, ()) for task in with_scores(member)]

    names = [name for task in tasks for name in with_scores(task)]
    # Tags are no groups: their tasks are found under names that were not asked for.
    names = names or list(table)
    missing = [name for name in table if not any(name in _below(task, members) for task in tasks)]
    names = list(dict.fromkeys([*names, *missing]))
    count = sum(1 for name in names for _ in _metrics(table[name]))
    for name in names:
        rows = (results.get("n-samples") or {}).get(name, {}).get("effective")
        for metric, score, error in _metrics(table[name]):
            if not math.isfinite(score):
                warnings.warn(f"{name}: {metric} is {score}", MagmergeWarning, stacklevel=2)
                continue
            low, high = (None, None) if error is None else (score - Z * error, score + Z * error)
            total = rows if isinstance(rows, int) else int(table[name].get("sample_len") or 0)
            yield TaskScore(name, name, metric, score, low, high, total, None, seconds / count)


def _below(name: str, members: Mapping[str, Sequence[str]]) -> set[str]:
    """A task or group, and all that belongs to it."""
    return {name}.union(*(_below(member, members) for member in members.get(name, ())))


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """Each metric's name with that of its filter if it has one, its value and standard error."""
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith(SPREAD) or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}{SPREAD},{kind}")
        sound = isinstance(error, int | float) and math.isfinite(error)
        name = metric if kind == "none" else f"{metric} ({kind})"
        yield name, float(value), float(error) if sound and error is not None else None


@contextmanager
def _failures(folder: Path, question: LmEval) -> Iterator[None]:
    """One message for whatever the harness raises."""
    try:
        yield
    except MagmergeError:
        raise
    except Exception as error:
        names, line = ", ".join(question.tasks), _first_line(error)
        kinds = [type(cause).__name__.lower() for cause in _causes(error)]
        if any(mark in kind for kind in kinds for mark in OFFLINE):
            raise MagmergeError(
                f"the data of {names} cannot be fetched: {line}",
                source=SUITE,
                remedy="run it once with a network, which keeps the data in the cache, or give a "
                "task with data of your own (--lm-eval-include)",
            ) from error
        raise MagmergeError(
            f"{SUITE} fails on {names}: {type(error).__name__}: {line}",
            source=folder,
            remedy="see that the task's data is there and that transformers loads the model",
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
