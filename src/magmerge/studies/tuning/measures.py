"""What a search is measured by: a suite, a file of texts, or unlabelled samples of each expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magmerge.core.errors import ParameterError
from magmerge.core.recipe import Recipe
from magmerge.data.rows import SampleOptions
from magmerge.evaluation.entries import SuiteEntry, path_of, task_names
from magmerge.evaluation.evaluator import Columns, quick_suite
from magmerge.evaluation.held_out import HeldOutTask, RowChoice, held_out_tasks, split_of
from magmerge.evaluation.live_model import open_weights
from magmerge.evaluation.task_suite import Suite, open_suite
from magmerge.studies.tuning.merged_models import Measuring
from magmerge.studies.tuning.nearness import SAMPLES, nearness_tasks, sources_of
from magmerge.studies.tuning.objective import Objective, check_metric, rises


@dataclass(frozen=True, slots=True)
class Measure:
    """One of `suite`, `perplexity` (files of texts) and `unlabelled` (a source for each expert by
    its name, or one for all), and how it is read.

    `metric`: mean, worst or relative. `tasks` are some of the suite's; `split` the one that is
    looked at; `rows` how many of each task at most, drawn by `seed`. Texts are of the column
    `text_field`, cut to `max_length` tokens.
    """

    suite: str | Path | Suite | None = None
    perplexity: Sequence[str | Path] = ()
    unlabelled: Any = None
    metric: str = "mean"
    tasks: Sequence[str] | None = None
    split: str | None = None
    rows: int | None = None
    seed: int = 0
    text_field: str | None = None
    max_length: int | None = None
    allow_code: bool = False


@dataclass(frozen=True, slots=True)
class OpenMeasure:
    """A measure whose files are there. `entry` and `base` are a suite's; `objective` makes the rows
    ready for models with the config and tokenizer of a folder.
    """

    entry: SuiteEntry | None
    base: Path | None
    rising: bool
    objective: Callable[[Measuring, Path | None], Objective]


def open_measure(measure: Measure, recipes: Sequence[Recipe]) -> OpenMeasure:
    """Everything checked that can be before the first merge; raises MagmergeError's children."""
    sources = {
        "a suite (--suite)": measure.suite is not None,
        "texts (--perplexity)": bool(measure.perplexity),
        "unlabelled samples (--unlabelled)": measure.unlabelled is not None,
    }
    said = [name for name, there in sources.items() if there]
    if len(said) != 1:
        problem = f"{' and '.join(said)} exclude each other" if said else "nothing to measure by"
        raise ParameterError(problem, remedy=f"give one of {', '.join(sources)}")
    if measure.rows is not None and (not isinstance(measure.rows, int) or measure.rows < 1):
        raise ParameterError(f"{measure.rows} rows", remedy="look at one or more of each task")
    return _unlabelled(measure, recipes) if measure.unlabelled is not None else _suite(measure)


def _unlabelled(measure: Measure, recipes: Sequence[Recipe]) -> OpenMeasure:
    check_metric(measure.metric, {"": "distance"})
    if measure.metric == "relative":
        raise ParameterError(
            "the distance to the experts has no share of theirs",
            remedy="--metric mean or --metric worst (metric=)",
        )
    options = SampleOptions(
        measure.rows or SAMPLES, measure.seed, measure.text_field, measure.max_length,
        split=measure.split,
    )  # fmt: skip

    sources_of(recipes, measure.unlabelled)

    def objective(measuring: Measuring, folder: Path | None) -> Objective:
        tasks = nearness_tasks(recipes, measure.unlabelled, options, measuring, folder)
        return Objective(tasks, measure.metric)

    return OpenMeasure(None, None, False, objective)


def _suite(measure: Measure) -> OpenMeasure:
    suite, whole = measure.suite, measure.suite is None
    if suite is None:
        columns = Columns(measure.text_field)
        suite = quick_suite(measure.perplexity, columns=columns, max_length=measure.max_length)
    elif not isinstance(suite, Suite):
        suite = open_suite(suite, allow_code=measure.allow_code)
    names = task_names(suite.entry, measure.tasks, str(suite.path))
    entry = suite.entry.model_copy(
        update={"tasks": {name: suite.entry.tasks[name] for name in names}}
    )
    metrics = {name: task.metric for name, task in entry.tasks.items()}
    check_metric(measure.metric, metrics)
    lacking = [name for name, task in entry.tasks.items() if task.expert is None]
    if measure.metric == "relative" and lacking:
        raise ParameterError(
            f"no expert is named for {', '.join(lacking)}",
            source=suite.path,
            remedy="add expert: PATH to these tasks, or search by --metric mean (metric=)",
        )
    choice = RowChoice(measure.split, measure.rows, measure.seed, whole)
    for name, task in entry.tasks.items():
        split_of(name, task, suite.path, choice)
    path, base = suite.path, suite.base

    def objective(measuring: Measuring, folder: Path | None) -> Objective:
        tasks = held_out_tasks(entry, path, folder, choice)
        made = Objective(tasks, measure.metric)
        if measure.metric == "relative":
            return replace(made, experts=_experts(entry, path, made, measuring))
        return made

    rising = rises(measure.metric, [*metrics.values()])
    return OpenMeasure(entry, base, rising, objective)


def _experts(
    entry: SuiteEntry, path: Path, objective: Objective, measuring: Measuring
) -> dict[str, float]:
    """Each task's number of its own expert; ParameterError where it is nothing to compare with."""
    numbers: dict[str, float] = {}
    for name, task in objective.tasks.items():
        expert = path_of(path.parent, str(entry.tasks[name].expert))
        own: dict[str, HeldOutTask] = {name: task}
        answers = measuring.answers(open_weights(expert, measuring.bench.base), own)
        numbers[name] = Objective(own).numbers(answers)[name]
        if numbers[name] <= 0:
            raise ParameterError(
                f"the expert of {name} has {numbers[name]:g} on its own task",
                source=expert,
                remedy="check that it is this task's expert, or search by --metric mean (metric=)",
            )
    return numbers
