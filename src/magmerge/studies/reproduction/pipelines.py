"""The pipelines that can be reproduced: their models, suites, methods and published figures."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from magmerge.core.errors import UnknownNameError, suggestion
from magmerge.core.recipe_faults import explained
from magmerge.evaluation.entries import keys_of, path_of, read_yaml

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
    """One pipeline. Sizes are in GB of the files that a download would bring.

    `include` is a folder with task files of one's own for the harness, which can run code. `tiny`
    says that models and data are small generated ones, whose figures mean nothing.
    """

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
    published: tuple[PublishedEntry, ...] = ()
    include: str | None = None
    tiny: bool = False


def pipeline_names() -> list[str]:
    """The names of all pipelines."""
    files = resources.files("magmerge.studies.reproduction").joinpath("pipelines").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def find_pipeline(name: str) -> Pipeline:
    """A pipeline by its name, or from a YAML file of one's own, which is named after the file.

    Paths in such a file are relative to it. UnknownNameError with a suggestion if there is none of
    the name, ParameterError for what is wrong in the file.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _own_pipeline(path)
    known = pipeline_names()
    if name not in known:
        raise UnknownNameError(f"there is no pipeline {name!r}", remedy=suggestion(name, known))
    file = resources.files("magmerge.studies.reproduction").joinpath("pipelines", f"{name}.yaml")
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Pipeline.model_validate({"name": name, **content})


def _own_pipeline(path: Path) -> Pipeline:
    content = read_yaml(path, "name a pipeline, or a YAML file with one")
    try:
        own = Pipeline.model_validate(
            {"name": path.stem, **content} if isinstance(content, dict) else content
        )
    except ValidationError as error:
        raise explained(error, str(path), keys_of(Pipeline)) from error

    def here(text: str) -> str:
        return path_of(path.parent, text)

    experts = {
        task: entry.model_copy(update={"data": entry.data and here(entry.data)})
        for task, entry in own.experts.items()
    }
    generic = own.generic.model_copy(update={"source": here(own.generic.source)})
    include = own.include and here(own.include)
    return own.model_copy(update={"experts": experts, "generic": generic, "include": include})
