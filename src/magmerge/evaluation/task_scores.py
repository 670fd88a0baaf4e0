"""From a suite's entry to a task ready to run, and from the model's answers to its score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from magmerge.core.errors import ParameterError, shortened, suggestion
from magmerge.data.rows import DataError, Rows, SampleDraw, Texts
from magmerge.data.sources import has_splits, read_samples
from magmerge.data.tokens import open_tokenizer, token_limit
from magmerge.engine.notes import warn
from magmerge.evaluation import metrics
from magmerge.evaluation.classification import Answer, Reading, class_batches, read_head
from magmerge.evaluation.entries import WHOLE, SuiteEntry, TaskEntry, path_of
from magmerge.evaluation.language import choice_batches, text_batches
from magmerge.evaluation.runner import Prepared


def class_numbers(
    labels: Sequence[Any], names: Sequence[str] | None, source: str
) -> Int[Tensor, "rows"]:
    """Labels as numbers from 0: whole numbers as they are, words by their place in `names`."""
    places = {name.strip(): place for place, name in enumerate(names or ())}
    return torch.tensor([_number(label, places, source) for label in labels], dtype=torch.int64)


def _number(label: Any, places: dict[str, int], source: str) -> int:
    word = str(label).strip()
    if isinstance(label, str) and word in places:
        return places[word]
    try:
        number = int(word) if isinstance(label, str) else int(label)
    except (ValueError, TypeError, OverflowError):
        raise DataError(
            f"the label {word!r} is no number of a class",
            source=source,
            remedy=suggestion(word, places)
            if places
            else "name the classes in the order of the head's rows: classes: [no, yes]",
        ) from None
    if not isinstance(label, str) and number != label:
        raise DataError(
            f"the label {label!r} is no whole number",
            source=source,
            remedy="number the classes from 0",
        )
    check_range(number, number, len(places) or None, source)
    return number


def values_of(labels: Sequence[Any], source: str) -> Float[Tensor, "rows"]:
    """Labels of a regression, in float64; DataError for one that is no finite number."""
    values = []
    for label in labels:
        with suppress(ValueError, TypeError, OverflowError):
            value = float(label)
            if math.isfinite(value) and not isinstance(label, bool):
                values.append(value)
                continue
        raise DataError(
            f"the label {str(label)!r} is no number",
            source=source,
            remedy="name the column of the numbers with label_field",
        )
    return torch.tensor(values, dtype=torch.float64)


def choices_of(rows: Sequence[Any], source: str) -> list[tuple[str, ...]]:
    """Each row's own choices: a list of two texts or more, or JSON of one, as a table has it."""
    choices = []
    for number, content in enumerate(rows, start=1):
        own: Any = content
        if isinstance(content, str):
            own = None
            with suppress(ValueError, RecursionError):
                own = json.loads(content)
        sound = isinstance(own, list | tuple) and len(own) > 1
        if not sound or not all(isinstance(choice, str) and choice.strip() for choice in own):
            raise DataError(
                f"row {number} has no list of two choices or more",
                source=source,
                remedy='write them as a list of texts, such as ["yes", "no"]',
            )
        choices.append(tuple(own))
    return choices


def right_choices(
    labels: Sequence[Any], choices: Sequence[Sequence[str]], source: str
) -> Int[Tensor, "rows"]:
    """The place of each row's right choice, which is told by its number from 0 or by its text."""
    pairs = zip(labels, choices, strict=True)
    places = [int(class_numbers([label], own, source)[0]) for label, own in pairs]
    return torch.tensor(places, dtype=torch.int64)


def check_range(least: int, greatest: int, classes: int | None, source: str) -> None:
    """DataError where a label is below 0, or not below the number of classes."""
    if least < 0 or (classes is not None and greatest >= classes):
        wrong = least if least < 0 else greatest
        raise DataError(
            f"the label {wrong} is none of {classes if classes else 'the'} classes, which count "
            "from 0",
            source=source,
            remedy="check that data, head and classes belong together",
        )


SCORES = {"f1": metrics.f1, "matthews": metrics.matthews}
CORRELATIONS = {"pearson": metrics.pearson, "spearman": metrics.spearman}


def data_source(name: str, entry: TaskEntry, split: str, suite: Path) -> tuple[str, str | None]:
    """Where a task's rows of this split are, and the split to read there if there are several."""
    known = entry.data if isinstance(entry.data, dict) else {WHOLE: entry.data}
    if isinstance(entry.data, str) and has_splits(path_of(suite.parent, entry.data)):
        known = {split: entry.data}
    if split not in known:
        raise ParameterError(
            f"the task {name} has no split {split!r}",
            source=suite,
            remedy=f"choose one with --split (split=): {shortened(list(known))}",
        )
    source = path_of(suite.parent, known[split])
    return source, split if has_splits(source) else None


def prepare_task(
    name: str,
    suite: SuiteEntry,
    path: Path,
    split: str,
    folder: Path | None,
    draw: SampleDraw | None = None,
) -> Prepared:
    """Read and prepare all rows of one split, or those of a draw; `folder` has tokenizer or image
    processor.

    Raises DataError and its like for data, heads and labels that do not fit each other.
    """
    entry = suite.tasks[name]
    source, part = data_source(name, entry, split, path)
    draw = draw or SampleDraw(name, None, allow_test=True)

    def read(label_field: str | None) -> Rows:
        """The rows with one column beside their texts or images."""
        how = replace(
            draw, field=entry.text_field, label_field=label_field, pair_field=entry.pair_field,
            split=part,
        )  # fmt: skip
        return read_samples(source, how)

    rows = read(None if entry.kind == "perplexity" else entry.label_field)
    warn(rows.notes)
    if entry.kind in ("classes", "values"):
        return _with_head(entry, suite, path, rows, folder)
    choices = None
    if entry.choices is not None:
        choices = [entry.choices] * len(rows)
    elif entry.choices_field is not None:
        choices = choices_of(read(entry.choices_field).labels or (), rows.source)
    return _language(entry, suite, rows, folder, choices)


def _with_head(
    entry: TaskEntry, suite: SuiteEntry, path: Path, rows: Rows, folder: Path | None
) -> Prepared:
    head = None if entry.head is None else read_head(path_of(path.parent, entry.head))
    labels = rows.labels or ()
    if entry.kind == "values":
        answer: Answer = "values"
        targets = values_of(labels, rows.source)
    else:
        answer = "classes"
        targets = class_numbers(labels, entry.classes or rows.classes, rows.source)
        if head is not None:
            check_range(int(targets.min()), int(targets.max()), len(head.weight), rows.source)
    reading = Reading(suite.features(entry), head, answer)
    batches = class_batches(rows, folder, suite.preparation(entry), reading)
    return Prepared(batches, len(rows), targets, rows.source)


def _language(
    entry: TaskEntry,
    suite: SuiteEntry,
    rows: Rows,
    folder: Path | None,
    choices: Sequence[Sequence[str]] | None,
) -> Prepared:
    """Perplexity, or with `choices`, each row's own, the best of them."""
    if not isinstance(rows.content, Texts):
        raise DataError(
            "a language task needs texts", source=rows.source, remedy="give JSONL, CSV or text"
        )
    texts = rows.content.values
    tokenizer = open_tokenizer(folder, rows.source)
    limit = token_limit(suite.preparation(entry).max_length, tokenizer, folder)
    if choices is None:
        batches = text_batches(tokenizer, texts, limit)
        if not batches:
            raise DataError(
                "no text has two tokens", source=rows.source, remedy="give longer texts"
            )
        return Prepared(batches, sum(len(batch.rows) for batch in batches), None, rows.source)
    labels = right_choices(rows.labels or (), choices, rows.source)
    if entry.choices_field is not None:
        choices = [
            [following(text, choice) for choice in row]
            for text, row in zip(texts, choices, strict=True)
        ]
    batches = choice_batches(tokenizer, texts, choices, limit, rows.source)
    return Prepared(batches, len(texts), labels, rows.source)


def following(text: str, choice: str) -> str:
    """A choice as it goes on from a text: with a space between them, unless there is one."""
    return choice if text[-1:].isspace() or choice[:1].isspace() else f" {choice}"


class Scoring(NamedTuple):
    """A score of two columns with an entry for each row, resampled or not, and these columns."""

    score: Callable[[Tensor, Tensor], Tensor]
    first: Tensor
    second: Tensor


def scoring_of(metric: str, task: Prepared, answers: Tensor) -> Scoring:
    """How what was answered for each row is scored."""
    if task.labels is None:
        return Scoring(metrics.perplexity, *answers.double().T)
    if metric in CORRELATIONS:
        return Scoring(CORRELATIONS[metric], task.labels, answers.double())
    labels, predictions, classes = task.labels, answers[:, 0].long(), int(answers[:, 1].max())
    check_range(int(labels.min()), int(labels.max()), classes, task.source)
    if metric == "accuracy":
        return Scoring(metrics.accuracy, labels, predictions)
    of_counts = SCORES[metric]

    def score(labels: Tensor, predictions: Tensor) -> Tensor:
        return of_counts(*metrics.count(labels, predictions, classes))

    return Scoring(score, labels, predictions)


def score_of(metric: str, task: Prepared, answers: Tensor) -> tuple[float, float, float]:
    """The score of what was answered for each row, in the rows' order, and its 95 % interval."""
    score, first, second = scoring_of(metric, task, answers)
    if metric == "accuracy":
        right = int((second == first).sum())
        return right / task.count, *metrics.wilson(right, task.count)
    return float(score(first, second)), *metrics.bootstrap(score, first, second)
