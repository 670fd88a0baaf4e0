"""evaluate(): models on a suite, on files of texts and questions, or on lm-evaluation-harness."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

from pydantic import ValidationError

from magmerge.checkpoints.output.own_files import check_document
from magmerge.core.errors import (
    MagmergeError,
    MagmergeWarning,
    ParameterError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.machine import Progress, shown_progress
from magmerge.core.recipe_faults import explained
from magmerge.evaluation.entries import WHOLE, SuiteEntry
from magmerge.evaluation.harness import LmEval, run_harness
from magmerge.evaluation.live_model import Hardware, Measurable
from magmerge.evaluation.scores import Scores, ScoresList, save_document
from magmerge.evaluation.task_suite import Suite, open_suite
from magmerge.evaluation.unlabelled import ROWS
from magmerge.evaluation.unlabelled import nearness as near_experts

NAME = "quick look"
CAUSAL = {"class": "AutoModelForCausalLM"}


class Columns(NamedTuple):
    """What columns hold: the texts of perplexity; the questions, choices and right answers."""

    text: str | None = None
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"


def _columns_of(names: Mapping[str, str | None]) -> Columns:
    """The columns that these names change; UnknownNameError for one that there is not."""
    for key in names:
        if key not in Columns._fields:
            remedy = suggestion(key, Columns._fields)
            raise UnknownNameError(f"there is no column for {key!r}", remedy=remedy)
    return Columns(**{key: name for key, name in names.items() if name})


def quick_suite(
    perplexity: Sequence[str | Path] = (),
    questions: Sequence[str | Path] = (),
    *,
    columns: Columns | None = None,
    base: str | Path | None = None,
    max_length: int | None = None,
) -> Suite:
    """A suite for causal language models with a task for each file, named after it.

    `perplexity` are files of texts, `questions` of questions with their own choices, whose answer
    is told by its number from 0 or by its text. `base` is where config and tokenizer come from, by
    default the measured model's own folder. ParameterError where no file is given.
    """
    columns = columns or Columns()
    texts = {"metric": "perplexity", "text_field": columns.text}
    choice_fields = {"text_field": columns.question, "choices_field": columns.choices}
    choice_fields["label_field"] = columns.answer
    tasks: dict[str, dict[str, Any]] = {}
    kinds = ((perplexity, texts), (questions, choice_fields))
    for source, entry in ((source, entry) for sources, entry in kinds for source in sources):
        tasks[_unused(source, tasks)] = {"data": str(source), **entry}
    if not tasks:
        raise ParameterError("there is nothing to measure on", remedy="give one file at least")
    content = {"suite": NAME, "model": CAUSAL, "max_length": max_length, "tasks": tasks}
    content["base"] = None if base is None else str(base)
    try:
        return Suite(NAME, SuiteEntry.model_validate(content))
    except ValidationError as error:
        raise explained(error, NAME, {}) from error


def _unused(source: str | Path, taken: dict[str, Any]) -> str:
    """The file's name without its ending; with a number where that is taken."""
    name = Path(source).stem or str(source)
    names = (name, *(f"{name} {number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


Path_ = str | Path


@overload
def evaluate(model: Measurable, **settings: Any) -> Scores: ...
@overload
def evaluate(model: list[Any] | tuple[Measurable, ...], **settings: Any) -> ScoresList: ...
def evaluate(
    model: Measurable | list[Any] | tuple[Measurable, ...],
    *,
    suite: Path_ | Suite | None = None,
    split: str = WHOLE,
    tasks: Sequence[str] | None = None,
    perplexity: Sequence[Path_] = (),
    questions: Sequence[Path_] = (),
    columns: Mapping[str, str | None] | None = None,
    base: Path_ | None = None,
    max_length: int | None = None,
    lm_eval: Sequence[str] | Mapping[str, Any] = (),
    allow_code: bool = False,
    nearness: int | None = None,
    out: Path_ | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **machine: Any,
) -> Scores | ScoresList:
    """Measure a model, or several in one pass: scores, 95 % intervals, and time.

    `model` is a folder, a file, a mapping from names to tensors, a torch module, which is run as it
    is, or a result of `merge`; a list of them gives a list of scores. They are measured on one of:

    - `suite`: a suite file, or an opened suite; `tasks` are names of some of its tasks. Experts
      that it names are measured too, once: their scores are remembered. `nearness` unlabelled rows
      of each task (default 16; 0: none) tell how near the models come to them. Where that cannot be
      told there is a warning, or an error if it was asked for; the scores are written before.
    - `perplexity`, `questions`: files of texts, and of questions with choices, for causal language
      models. `columns` names their columns: text, question, choices, answer. Config and tokenizer
      come from the model's folder or from `base`; texts are cut to `max_length` tokens.
    - `lm_eval`: names of tasks of lm-evaluation-harness, or a mapping with the fields of `LmEval`.

    `machine` are fields of `Hardware`: `threads` batches are at work at once, and `workers` threads
    decode images ahead of them; their numbers do not change the scores. The forward pass is in
    `dtype` (default float32) on `device` (default cpu); heads and log-probabilities are in float32.
    Live models take at most `memory`, but for one model. Code that a suite names, and task files of
    the harness, which can run code, need `allow_code`. With `out` the scores are written there as
    JSON. Raises MagmergeError's children.
    """
    many = isinstance(model, list | tuple)
    models = list(model) if isinstance(model, list | tuple) else [model]
    _one_of(suite=suite, perplexity_or_questions=[*perplexity, *questions], lm_eval=lm_eval)
    if out is not None:
        check_document(Path(out), overwrite=overwrite)
    progress = progress or shown_progress()
    setting = Hardware(**machine, progress=progress)
    if lm_eval:
        scores = run_harness(models, LmEval.of(lm_eval), setting, allow_code=allow_code)
    else:
        named = _columns_of(columns or {})
        if suite is None:
            suite = quick_suite(
                perplexity, questions, columns=named, base=base, max_length=max_length
            )
        opened = suite if isinstance(suite, Suite) else open_suite(suite, allow_code=allow_code)
        results = opened.evaluate_all(
            {str(number): entry for number, entry in enumerate(models)},
            split=split, tasks=tasks, progress=progress, **machine,
        )  # fmt: skip
        scores = list(results.values())
        # What comes after the scores may fail, and must not take them along.
        _save(scores, out, many, overwrite=overwrite)
        overwrite = True
        if nearness != 0:
            near = partial(near_experts, opened, models, tasks=tasks, progress=progress, **machine)
            scores = _with_nearness(scores, near, nearness)
    _save(scores, out, many, overwrite=overwrite)
    return ScoresList(scores) if many else scores[0]


def _save(scores: Sequence[Scores], out: Path_ | None, many: bool, *, overwrite: bool) -> None:
    if out is not None:
        documents = [row.document() for row in scores]
        save_document(documents if many else documents[0], out, overwrite=overwrite)


def _with_nearness(
    scores: Sequence[Scores], near: Callable[..., list[Any]], rows: int | None
) -> list[Scores]:
    """The scores with how near the models come to experts on so many rows; with None on ROWS of
    them, and a warning in place of an error where it cannot be told.
    """
    try:
        told = near(rows=ROWS if rows is None else rows)
    except MagmergeError as error:
        if rows is not None:
            raise
        text = f"how near the models come to the experts is not told: {error}"
        warnings.warn(text, MagmergeWarning, stacklevel=3)
        return list(scores)
    return [replace(row, nearness=own) for row, own in zip(scores, told, strict=True)]


def _one_of(**sources: Any) -> None:
    """ParameterError unless exactly one of these says what to measure on."""
    there = [name.replace("_or_", " or ") for name, value in sources.items() if value]
    if not there:
        raise ParameterError(
            "there is nothing to measure on",
            remedy="give a suite (--suite), texts (--perplexity), questions (--questions) or tasks "
            "of lm-evaluation-harness (--lm-eval)",
        )
    if len(there) > 1:
        raise ParameterError(f"{' and '.join(there)} exclude each other", remedy="give one of them")
