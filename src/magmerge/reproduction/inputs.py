"""Where a pipeline's base and experts are: in the user's folder, in the hub's cache, or there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from magmerge.errors import CheckpointError, MagmergeError
from magmerge.machine import Progress
from magmerge.reproduction.pipelines import ExpertEntry, Pipeline
from magmerge.samples.extras import needed

FILES = ("", ".safetensors", ".pt", ".bin")
"""Endings that a model of a task's name may have; none for a folder."""
WITHIN = ("finetuned.pt", "nonlinear_finetuned.pt")
"""Files that whole pickled experts are called in their task's folder."""
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a model: weights, configuration, tokenizer. No code."""
PICKLED = (*WANTED, "*.bin")
"""The same for models that were published before safetensors."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The base's folder and the experts' folders or files, by task."""

    base: Path
    experts: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model that a pipeline needs: what for, its name on the hub, and its names here."""

    role: str
    hub: str | None
    names: tuple[str, ...]


def wanted_models(pipeline: Pipeline, tasks: tuple[str, ...]) -> dict[str, Wanted]:
    """The models of a pipeline, by role: base, and each task's expert."""
    base = Wanted("base", pipeline.base, ("base", *_hub_names(pipeline.base)))
    return {"base": base} | {
        task: Wanted(task, entry.hub, _expert_names(task, entry))
        for task, entry in pipeline.experts.items()
        if task in tasks
    }


def find_here(pipeline: Pipeline, role: str, folder: Path | None) -> Path | None:
    """A model that needs no download: in the user's folder, else in the hub's cache."""
    model = wanted_models(pipeline, tuple(pipeline.experts))[role]
    found = None if folder is None else _in_folder(model, pipeline, folder)
    return found or _from_hub(model, fetch=False)[0]


def missing_models(pipeline: Pipeline, tasks: tuple[str, ...], folder: Path | None) -> list[str]:
    """The roles whose models are not here."""
    wanted = wanted_models(pipeline, tasks)
    return [role for role in wanted if find_here(pipeline, role, folder) is None]


def _in_folder(wanted: Wanted, pipeline: Pipeline, folder: Path) -> Path | None:
    """A model in the user's folder, under one of the names that it is known by."""
    for place in _places(folder, pipeline):
        for name in wanted.names:
            for ending in FILES:
                path = place / f"{name}{ending}"
                if path.is_file():
                    return path
                if path.is_dir():
                    whole = [path / inner for inner in WITHIN if (path / inner).is_file()]
                    return whole[0] if whole else path
    return None


def find_inputs(
    pipeline: Pipeline,
    tasks: tuple[str, ...],
    folder: Path | None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Inputs:
    """All models of a pipeline: in `folder`, else in the hub's cache, else fetched.

    CheckpointError, with all that is missing, where one of them cannot be had.
    """
    if folder is not None and not folder.is_dir():
        raise CheckpointError(
            "no such folder", source=folder, remedy="name the folder of your models with --inputs"
        )
    wanted = wanted_models(pipeline, tasks)
    found, missing = {}, []
    for number, (role, model) in enumerate(wanted.items(), start=1):
        path = None if folder is None else _in_folder(model, pipeline, folder)
        problem = ""
        if path is None:
            path, problem = _from_hub(model, fetch=fetch)
        if path is None:
            missing.append(_missing(model, problem))
        else:
            found[role] = path
        if progress is not None:
            progress("looking for models", number, len(wanted))
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} models are missing:\n" + "\n".join(missing),
            source=folder,
            remedy="download them where there is a network, and name their folder with --inputs; "
            f"to try the path with small models: magmerge reproduce {pipeline.name} --tiny",
        )
    return Inputs(found["base"], {task: found[task] for task in wanted if task != "base"})


def _from_hub(model: Wanted, *, fetch: bool) -> tuple[Path | None, str]:
    """A model's folder in the cache of the hub, and what went wrong."""
    if model.hub is None:
        return None, "no name on the hub"
    try:
        library = needed("huggingface_hub", f"fetching {model.hub}")
    except MagmergeError as error:
        return None, error.problem
    problem = ""
    for only_local in (True, False) if fetch else (True,):
        for patterns in (WANTED, PICKLED):
            try:
                found = Path(
                    library.snapshot_download(
                        model.hub, allow_patterns=list(patterns), local_files_only=only_local
                    )
                )
            except Exception as error:
                problem = next(iter(str(error).splitlines()), type(error).__name__)
            else:
                if any(found.glob("*.safetensors")) or any(found.glob("*.bin")):
                    return found, ""
                problem = "no weights in it"
    return None, problem


def _missing(model: Wanted, problem: str) -> str:
    hub = "" if model.hub is None else f" ({model.hub}: {problem})"
    return f"  {model.role}{hub}: as {' or '.join(model.names[:3])}"


def _places(folder: Path, pipeline: Pipeline) -> Iterator[Path]:
    for place in (folder, *(folder / name for name in pipeline.folders)):
        yield place
        yield place / "experts"


def _expert_names(task: str, entry: ExpertEntry) -> tuple[str, ...]:
    return (task, *entry.folders, *(() if entry.hub is None else _hub_names(entry.hub)))


def _hub_names(hub: str) -> tuple[str, ...]:
    return (hub.rpartition("/")[2], hub)
