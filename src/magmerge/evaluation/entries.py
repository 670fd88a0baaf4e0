"""The suite file: tasks, their data, heads and metrics, checked and with its paths resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.plain_yaml import PlainLoader
from magmerge.core.recipe_faults import explained
from magmerge.data.rows import Preparation

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "perplexity"]
Features = Literal["mean", "cls", "pooler", "embeds", "output"]
AnswerKind = Literal["classes", "values", "choices", "perplexity"]
OF_VALUES = frozenset({"pearson", "spearman"})
"""Metrics of numbers, not of classes."""
STRICT = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
WHOLE = "test"
"""The split that data without named splits stands for."""


class ModelEntry(BaseModel):
    """How the module is made, and which of its outputs the heads take.

    `class` names a class of transformers, `build` the user's own "package.module:function".
    `features`: mean over the tokens that are no padding, the first token (cls), the pooler's
    output, the projected embeddings of a CLIP encoder (embeds), or the output itself: the logits or
    the only tensor. Default: mean where a task has a head, else output.
    """

    model_config = STRICT

    class_: str | None = Field(None, alias="class")
    build: str | None = None
    features: Features | None = None

    @model_validator(mode="after")
    def _one_way(self) -> ModelEntry:
        if self.class_ is not None and self.build is not None:
            raise ValueError("class and build exclude each other")
        return self


class TaskEntry(BaseModel):
    """One task. Paths are relative to the suite file.

    `data` is one source, or one for each split. `choices` are continuations of the text, for a
    causal language model, the same for all rows; `choices_field` is the column with each row's own.
    `classes` are the names of labels that are words. `pair_field` is the column of the second text
    of pairs.
    """

    model_config = STRICT

    title: str | None = None
    data: str | dict[str, str]
    metric: Metric = "accuracy"
    expert: str | None = None
    expert_score: FiniteFloat | None = None
    head: str | None = None
    choices: tuple[str, ...] | None = Field(None, min_length=2)
    classes: tuple[str, ...] | None = Field(None, min_length=2)
    text_field: str | None = None
    pair_field: str | None = None
    choices_field: str | None = None
    label_field: str = "label"
    max_length: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> TaskEntry:
        has_choices = self.choices is not None or self.choices_field is not None
        if self.choices is not None and self.choices_field is not None:
            raise ValueError("choices and choices_field exclude each other")
        if has_choices and self.head is not None:
            raise ValueError("choices and head exclude each other")
        if self.metric == "perplexity" and (has_choices or self.head):
            raise ValueError("perplexity takes neither choices nor head")
        if self.metric in OF_VALUES and (has_choices or self.classes):
            raise ValueError(f"{self.metric} is of numbers: it takes neither choices nor classes")
        if self.choices_field is not None and self.metric != "accuracy":
            raise ValueError("choices_field goes with accuracy: the rows have no classes in common")
        if self.choices_field is not None and self.text_field is None:
            raise ValueError("choices_field needs text_field, the column of the questions")
        if self.pair_field is not None and self.kind not in ("classes", "values"):
            raise ValueError("pair_field is for classifiers and regressions")
        return self

    @property
    def kind(self) -> AnswerKind:
        """What the model is asked for."""
        if self.metric == "perplexity":
            return "perplexity"
        if self.metric in OF_VALUES:
            return "values"
        return "classes" if self.choices is None and self.choices_field is None else "choices"

    @property
    def question(self) -> str:
        """All that decides what a model answers, and nothing of how its answers are scored."""
        scoring = {"title", "metric", "expert", "expert_score"}
        return f"{self.kind} {self.model_dump_json(exclude=scoring)}"


class SuiteEntry(BaseModel):
    """A suite file. `base` is where config, tokenizer and image processor come from."""

    model_config = STRICT

    suite: str
    base: str | None = None
    model: ModelEntry = Field(default_factory=lambda: ModelEntry.model_validate({}))
    max_length: int | None = Field(None, ge=1)
    image_size: int | tuple[int, int] | None = None
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    tasks: dict[str, TaskEntry] = Field(min_length=1)

    def preparation(self, task: TaskEntry | None) -> Preparation:
        """How texts or images become inputs, of a task or of none."""
        length = (task and task.max_length) or self.max_length
        return Preparation(length, self.image_size, self.mean, self.std)

    def features(self, task: TaskEntry) -> Features:
        """Which output of the module a task looks at."""
        return self.model.features or ("output" if task.head is None else "mean")


LEVELS: Mapping[int, type[BaseModel]] = {1: SuiteEntry, 2: ModelEntry, 3: TaskEntry}
"""The keys that are known, by how deep the key lies."""


def read_suite(path: Path) -> SuiteEntry:
    """Read and check a suite file; ParameterError or UnknownNameError for what is wrong in it."""
    try:
        return SuiteEntry.model_validate(read_yaml(path, "check the path given to --suite"))
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        known = LEVELS.get(len(place), SuiteEntry)
        raise explained(error, str(path), keys_of(known)) from error


def read_yaml(path: Path, remedy: str) -> Any:
    """What a YAML file holds; ParameterError, with `remedy` where it cannot be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ParameterError(f"cannot be read: {why}", source=path, remedy=remedy) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"not YAML: {error}", source=path, remedy="mend the line it names"
        ) from error


def task_names(suite: SuiteEntry, tasks: Sequence[str] | None, source: str) -> list[str]:
    """The names of the tasks asked for, in the suite's order; None for all."""
    for name in tasks or ():
        if name not in suite.tasks:
            raise UnknownNameError(
                f"there is no task {name!r}", source=source, remedy=suggestion(name, suite.tasks)
            )
    return [name for name in suite.tasks if tasks is None or name in tasks]


def path_of(folder: Path, text: str) -> str:
    """A path of the suite as seen from here; a data set's name stays as it is."""
    path = Path(text).expanduser()
    inside = folder / path
    return str(inside) if path.is_absolute() or inside.exists() or path.suffix else text


def keys_of(entry: type[BaseModel]) -> dict[str, Any]:
    """The keys that an entry may have."""
    return {field.alias or name: None for name, field in entry.model_fields.items()}
