"""lm-evaluation-harness as an evaluator of language models: its tasks, its prompts, its metrics."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from magmerge import dtypes
from magmerge.engine.result import Result
from magmerge.errors import MagmergeError, MagmergeWarning, ParameterError, UnknownNameError
from magmerge.errors import suggestion as near
from magmerge.evaluation.harness_bars import told
from magmerge.evaluation.intervals import Z
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.live.modules import quiet_transformers
from magmerge.machine import Progress
from magmerge.samples.extras import needed

SUITE = "lm-evaluation-harness"
OFFLINE = ("connection", "offline", "localentrynotfound", "maxretry", "timeout", "hubhttp")
"""What names of errors hold that a missing network causes."""
SPREAD = "_stderr"


@dataclass(frozen=True, slots=True)
class LmEval:
    """What lm-evaluation-harness is asked for.

    `tasks` are names of its tasks, groups or tags; `include` is a folder with task files of one's
    own, which it reads. `limit` rows of each task are
    measured (default: all), with `num_fewshot` examples before each (default: the task's own).
    """

    tasks: tuple[str, ...]
    include: str | Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    seed: int = 0

    @classmethod
    def of(cls, given: Sequence[str] | Mapping[str, Any]) -> LmEval:
        """From names of tasks, or from a mapping of fields; raises MagmergeError's children."""
        content = dict(given) if isinstance(given, Mapping) else {"tasks": given}
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise UnknownNameError(
                    f"lm_eval has no field {name!r}", remedy=near(str(name), known)
                )
        tasks = content.get("tasks") or ()
        content["tasks"] = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        made = cls(**content)
        if not made.tasks:
            raise ParameterError("no task is named", remedy="give one with --lm-eval (lm_eval=)")
        for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
            value = getattr(made, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ParameterError(f"{name} is {value!r}", remedy=f"give {least} or more")
        return made


def run_harness(
    models: Sequence[Any],
    wanted: LmEval,
    *,
    device: str | None = None,
    dtype: str | None = None,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> list[Scores]:
    """Measure model folders on tasks of lm-evaluation-harness: a row for each task and metric.

    Models are loaded by its class for transformers, without remote code; task files of one's own,
    which can run code, are read only with `allow_code`. Intervals are the score
    and 1.96 of its standard errors on both sides. MissingExtraError where it is not installed,
    UnknownNameError for tasks it does not know, MagmergeError where a task's data cannot be had.
    """
    folders = [_folder(model) for model in models]
    if wanted.include is not None and not allow_code:
        # Functions that task files name, and templates in them, run as any code does.
        raise ParameterError(
            "task files of the harness can run code",
            source=wanted.include,
            remedy="read them, and if you trust them add --allow-code (allow_code=True)",
        )
    harness = needed("lm_eval", "--lm-eval")
    precision = dtypes.torch_dtype(dtypes.parse_float_dtype(dtype or "float32"))
    with _quiet():
        tasks = _manager(wanted)
        found = []
        for folder in folders:
            start = time.monotonic()
            with told(progress), _explained(folder, wanted):
                results = harness.simple_evaluate(
                    model="hf",
                    model_args={
                        "pretrained": str(folder),
                        "dtype": str(precision).removeprefix("torch."),
                        "trust_remote_code": False,
                    },
                    tasks=list(wanted.tasks),
                    task_manager=tasks,
                    num_fewshot=wanted.num_fewshot,
                    limit=wanted.limit,
                    batch_size=wanted.batch_size,
                    device=device or "cpu",
                    random_seed=wanted.seed,
                    numpy_random_seed=wanted.seed,
                    torch_random_seed=wanted.seed,
                    fewshot_random_seed=wanted.seed,
                    log_samples=False,
                    bootstrap_iters=1000,
                )
            seconds = time.monotonic() - start
            rows = tuple(_rows(results, wanted.tasks, seconds))
            found.append(Scores(SUITE, "", str(folder), rows, seconds))
    return found


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


def _manager(wanted: LmEval) -> Any:
    """The harness's own list of tasks, with those of the folder; UnknownNameError for others."""
    if wanted.include is not None and not Path(wanted.include).is_dir():
        raise ParameterError(
            "it is no folder", source=wanted.include, remedy="name a folder of task files"
        )
    tasks = import_module("lm_eval.tasks")
    folder = None if wanted.include is None else str(wanted.include)
    try:
        if folder is not None:
            # The harness's own files are thousands, and take seconds to read.
            manager = tasks.TaskManager(include_path=folder, include_defaults=False)
            if set(wanted.tasks) <= set(manager.all_subtasks):
                return manager
        manager = tasks.TaskManager(include_path=folder)
    except Exception as error:
        raise ParameterError(
            f"its task files cannot be read: {_first_line(error)}",
            source=wanted.include,
            remedy="mend the file that it names",
        ) from error
    known = frozenset(manager.all_tasks)
    for name in wanted.tasks:
        if name not in known:
            remedy = near(name, known)
            if not remedy.startswith("did you mean"):
                remedy = "`lm_eval ls tasks` lists all; --lm-eval-include FOLDER adds your own"
            raise UnknownNameError(f"{SUITE} has no task {name!r}", remedy=remedy)
    return manager


def _rows(results: Mapping[str, Any], asked: Sequence[str], seconds: float) -> Iterator[TaskScore]:
    """A row for each task and metric; a group without own scores gives those of its tasks."""
    table, members = results["results"], results.get("group_subtasks") or {}
    names = [name for one in asked for name in _with_scores(one, table, members)]
    # Tags are no groups: their tasks are found under names that were not asked for.
    names = names or list(table)
    missing = [name for name in table if not any(name in _below(one, members) for one in asked)]
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


def _with_scores(
    name: str, table: Mapping[str, Any], members: Mapping[str, Sequence[str]]
) -> list[str]:
    if name in table and any(_metrics(table[name])):
        return [name]
    return [found for one in members.get(name, ()) for found in _with_scores(one, table, members)]


def _below(name: str, members: Mapping[str, Sequence[str]]) -> set[str]:
    """A task or group, and all that belongs to it."""
    return {name}.union(*(_below(one, members) for one in members.get(name, ())))


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
def _explained(folder: Path, wanted: LmEval) -> Iterator[None]:
    """One message for whatever the harness raises."""
    try:
        yield
    except MagmergeError:
        raise
    except Exception as error:
        names = ", ".join(wanted.tasks)
        if any(mark in type(one).__name__.lower() for one in _causes(error) for mark in OFFLINE):
            raise MagmergeError(
                f"the data of {names} cannot be fetched: {_first_line(error)}",
                source=SUITE,
                remedy="run it once with a network, which keeps the data in the cache, or give a "
                "task with data of your own (--lm-eval-include)",
            ) from error
        raise MagmergeError(
            f"{SUITE} fails on {names}: {type(error).__name__}: {_first_line(error)}",
            source=folder,
            remedy="see that the task's data is there and that transformers loads the model",
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log, which is not for users."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with quiet_transformers():
            yield
    finally:
        log.setLevel(level)
