"""Quick looks at language models: a suite made from files of texts and of questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from magmerge.core.errors import ParameterError
from magmerge.core.recipe import explained
from magmerge.evaluation.entries import SuiteEntry
from magmerge.evaluation.task_suite import Suite

NAME = "quick look"
CAUSAL = {"class": "AutoModelForCausalLM"}


class Columns(NamedTuple):
    """What columns hold: the texts of perplexity; the questions, choices and right answers."""

    text: str | None = None
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"


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
    asked = {"text_field": columns.question, "choices_field": columns.choices}
    asked["label_field"] = columns.answer
    tasks: dict[str, dict[str, Any]] = {}
    kinds = ((perplexity, texts), (questions, asked))
    for source, entry in ((one, entry) for sources, entry in kinds for one in sources):
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
    return next(one for one in names if one not in taken)
