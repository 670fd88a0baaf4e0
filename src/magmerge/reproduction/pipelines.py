"""The pipelines that can be reproduced: their models, suites, methods and published figures."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from magmerge.errors import UnknownNameError, suggestion

STRICT = ConfigDict(frozen=True, extra="forbid")
PUBLISHED_MEAN = "mean"
"""The key of a published model's average over the tasks."""


class ExpertEntry(BaseModel):
    """One expert: its name on the hub, folders that other collections keep it in, its task's rows.

    `tasks` are the harness's for its skill; `data` and `text_field` are where samples come from,
    where no suite says it.
    """

    model_config = STRICT

    hub: str | None = None
    folders: tuple[str, ...] = ()
    rows: int | None = Field(None, ge=1)
    tasks: tuple[str, ...] = ()
    data: str | None = None
    text_field: str | None = None


class GenericEntry(BaseModel):
    """The generic set that sensitive layers are found on."""

    model_config = STRICT

    source: str
    split: str | None = None
    samples: int = Field(256, ge=1)


class PublishedEntry(BaseModel):
    """Published figures in %: by model, then by task; `line` is the collection of checkpoints.

    `params` are the parameters of methods that are not at their defaults.
    """

    model_config = STRICT

    source: str
    line: str
    note: str | None = None
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)
    models: dict[str, dict[str, FiniteFloat]]


class Pipeline(BaseModel):
    """One pipeline. Sizes are in GB of the files that a download would bring."""

    model_config = STRICT

    name: str
    title: str
    kind: Literal["vision", "text", "language"]
    suite: str | None = None
    base: str
    base_gb: FiniteFloat
    expert_gb: FiniteFloat
    folders: tuple[str, ...] = ()
    experts: dict[str, ExpertEntry] = Field(min_length=2)
    generic: GenericEntry
    methods: tuple[str, ...]
    published: tuple[PublishedEntry, ...]


def pipeline_names() -> list[str]:
    """The names of all pipelines."""
    found = resources.files("magmerge.reproduction").joinpath("pipelines").iterdir()
    return sorted(one.name.removesuffix(".yaml") for one in found if one.name.endswith(".yaml"))


def find_pipeline(name: str) -> Pipeline:
    """A pipeline by its name; UnknownNameError with a suggestion if there is none."""
    known = pipeline_names()
    if name not in known:
        raise UnknownNameError(f"there is no pipeline {name!r}", remedy=suggestion(name, known))
    file = resources.files("magmerge.reproduction").joinpath("pipelines", f"{name}.yaml")
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Pipeline.model_validate({"name": name, **content})
