"""run(): a recipe, or the several documents of a recipe's file, to a result."""

from __future__ import annotations

import errno
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from magmerge import live, report
from magmerge.checkpoints.loader import Model, adapts, open_checkpoint
from magmerge.checkpoints.open_files import READ_REMEDIES
from magmerge.checkpoints.output.layout import SUFFIX
from magmerge.checkpoints.output.own_files import RECIPE, RECORD, REPORT
from magmerge.checkpoints.output.target import Target, check_apart_and_free
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.core.errors import MagmergeError, MissingExtraError, ParameterError, suggestion
from magmerge.core.lazy import load
from magmerge.core.machine import Machine
from magmerge.core.plain_yaml import PlainLoader, yaml_of
from magmerge.core.recipe import Recipe
from magmerge.engine.job import Findings, Job, Live, Work
from magmerge.engine.notes import warn
from magmerge.engine.opening import EXPERT
from magmerge.engine.outputs import named_path, target_for
from magmerge.engine.resolve import open_job
from magmerge.engine.result import Result
from magmerge.engine.run import run_job

if TYPE_CHECKING:
    from magmerge.checkpoints.output.shelf import Shelf


def run(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    out: str | Path | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    machine: Machine | None = None,
    live: Live | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Result:
    """Carry a recipe out, whatever it is: a merge, a calibration, an extraction, a conversion.

    `recipe` is one, several of which later ones name the results of earlier ones as models, or the
    path of a YAML file of such documents. `models` are models in memory, by their role in the
    recipe (base, merged) or their expert's name, in place of its paths. With `out` the result of
    the last is written there, else it stays in memory; with `resume` what a killed run of the same
    recipe left is gone on with. Raises MagmergeError's children.
    """
    recipes = recipes_of(recipe, models or {})
    check_documents(recipes)
    if out is None and resume:
        raise ParameterError("resume speaks of an output", remedy="name one: out=")
    machine, names = machine or Machine(), [document.name for document in recipes]
    inputs = [
        Path(path) for document in recipes for path in document.models.values() if path not in names
    ]
    if out is not None:
        check_apart_and_free(named_path(out), inputs, overwrite=overwrite)
    shelf_for = load("magmerge.checkpoints.output.shelf:shelf_for")
    with shelf_for(out, len(recipes) - 1, resume=resume) as shelf:
        call = Call(models or {}, machine, live)
        job = last_job(recipes, shelf, call, resume=resume)
        target = None
        if out is not None:
            target = target_for(job, out, overwrite=overwrite, resume=resume)
        return run_job(job, target, measure=measured, report=result_pages)


class Call(NamedTuple):
    """What a call adds to its recipes: models in memory, the machine, and what is no data."""

    models: Mapping[str, Model]
    machine: Machine
    live: Live | None = None


def last_job(recipes: Sequence[Recipe], shelf: Shelf, call: Call, *, resume: bool = False) -> Job:
    """The job of the last document, once those before it are carried out and lie on the shelf."""
    resolved: list[Recipe] = []
    origins: list[Mapping[str, Any]] = []
    names = [document.name for document in recipes]
    for place, document in enumerate(recipes):
        last = place == len(recipes) - 1
        in_memory = documents_models(document, call.models, last=last)
        known = {name: shelf.place(number) for number, name in enumerate(names[:place])}
        in_memory |= {
            key: _result(known[path], path)
            for key, path in named_models(document).items()
            if path in known
        }
        job = open_job(
            document, in_memory, machine=call.machine, live=call.live, documents=resolved
        )
        passing = frozenset(filter(shelf.holds, job.models.stamps))
        job = replace(job, passing=passing, origins=tuple(origins))
        if not last:
            target = target_for(job, shelf.place(place), overwrite=True, resume=resume)
            result = run_job(job, target, measure=measured, report=result_pages)
            resolved.append(result.recipe)
            origins += _origins(result, names)
    return job


def _origins(result: Result, names: Container[str | None]) -> list[dict[str, Any]]:
    """What a document's result was made of, less results of other documents; each as it is called
    from here.
    """
    assert result.path is not None
    entries = json.loads((result.path / RECORD).read_bytes())["inputs"]
    sources, document = [entry.source for entry in result.job.inputs], str(result.recipe.name)
    told = zip(entries[: len(sources)], sources, strict=True)
    own = [{**entry, "source": source, "document": document} for entry, source in told]
    return [entry for entry in own if entry["source"] not in names]


def recipes_of(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    models: Mapping[str, Model],
    rules: str = "better",
) -> list[Recipe]:
    """One recipe or several, as they are given or from their file, of which all faults are told at
    once. `models` are those that the call has in place of paths; `rules` as in `read_recipes`.
    """
    if isinstance(recipe, str | Path):
        held = {key.removeprefix(EXPERT) for key in models}
        check = load("magmerge.core.recipe_check:check_text")
        try:
            recipes = read_recipes(recipe, rules)
        except MagmergeError:
            check(recipe_text(recipe), str(recipe), held)
            raise
        check_documents(recipes)
        check(recipe_text(recipe), str(recipe), held)
        return recipes
    recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    if not recipes or not all(isinstance(document, Recipe) for document in recipes):
        raise ParameterError(
            f"{recipe!r} is no recipe", remedy="give a Recipe, a list of such, or a file's path"
        )
    return recipes


def documents_models(
    recipe: Recipe, models: Mapping[str, Model], *, last: bool
) -> dict[str, Model]:
    """The models of a call that a document has a place for; all of them are the last one's."""
    keys = {"base", "merged", *recipe.experts, *(f"{EXPERT}{name}" for name in recipe.experts)}
    return {key: model for key, model in models.items() if last or key in keys}


def read_recipes(path: str | Path, rules: str = "better") -> list[Recipe]:
    """The documents of a recipe's file, or of the recipe beside a result or its record;
    ParameterError, with key and remedy, where it is none.

    One of mergekit's is translated, by `rules` "mergekit" with its own choices where they are not
    the better ones; see docs/mergekit.md.
    """
    recipes = Recipe.all_from_yaml(recipe_text(path), str(path), rules)
    if rules == "mergekit":
        recipes = [*map(load("magmerge.pipeline.promotion:with_promoted_dtype"), recipes)]
    return recipes


def recipe_text(path: str | Path) -> str:
    """What a recipe's file holds; ParameterError where it cannot be read."""
    file = Path(path)
    if file.is_dir():
        file = file / RECIPE
        if not file.exists():
            raise ParameterError(
                f"it is a folder without a recipe ({RECIPE})",
                source=path,
                remedy="name models with --base and --expert, or give a recipe's file",
            )
    elif file.name.endswith(RECORD):
        file = file.with_name(file.name.removesuffix(RECORD) + RECIPE)
    elif file.suffix == SUFFIX:
        file = file.with_name(f"{file.name.removesuffix(SUFFIX)}.{RECIPE}")
    try:
        text = file.read_text(encoding="utf-8")
        return _from_here(text, file) if file.name.endswith(RECIPE) else text
    except UnicodeDecodeError as error:
        raise ParameterError(
            "it is no UTF-8 text", source=file, remedy="save it as UTF-8"
        ) from error
    except OSError as error:
        near = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        told = suggestion(file.name, near) if near and not file.exists() else ""
        remedy = told if told.startswith("did you mean") else "check the path of the recipe"
        if error.errno == errno.EIO:
            remedy = READ_REMEDIES[errno.EIO]
        raise ParameterError(
            f"cannot be read: {error.strerror}", source=file, remedy=remedy
        ) from error


def _from_here(text: str, file: Path) -> str:
    """The recipe beside a result, whose paths are called from its folder, with those from here."""
    try:
        contents = [*yaml.load_all(text, PlainLoader)]
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if not all(isinstance(content, dict) for content in contents):
        return text
    rooted_at = load("magmerge.core.recipe_paths:rooted_at")
    with_paths = load("magmerge.core.recipe_paths:with_paths")
    change = rooted_at(file.parent, [str(content.get("name")) for content in contents])
    rooted = [with_paths(content, change) for content in contents]
    return text if rooted == contents else "---\n".join(map(yaml_of, rooted))


def check_documents(recipes: Sequence[Recipe]) -> None:
    """ParameterError where a document's result cannot be named: by no name, or by one of two."""
    names = [recipe.name for recipe in recipes]
    for place, recipe in enumerate(recipes[:-1]):
        if not recipe.name:
            raise ParameterError(
                f"document {place + 1} has no name that others could call its result by",
                remedy="give it one: name: stage-1",
            )
        if names.index(recipe.name) != place:
            raise ParameterError(
                f"two documents are named {recipe.name!r}", remedy="give each a name of its own"
            )
        later = [path for document in recipes[place + 1 :] for path in document.models.values()]
        if recipe.name not in later:
            raise ParameterError(
                f"no document reads the result of {recipe.name!r}",
                remedy="name it as the base or an expert of a later one, or drop it",
            )
    for recipe in recipes:
        donor = getattr(recipe.output, "donor", None)
        if donor is not None and donor in names[:-1]:
            raise ParameterError(
                f"the donor {donor!r} is a document of this file",
                remedy="name the folder of a model; a result takes its base's config by itself",
            )


def measured(work: Work, inputs: Mapping[str, Any]) -> Findings:
    """A pass into the live model, which is loaded where there are samples, or prompts."""
    if work.job.recipe.moe is not None:
        return live.routers(work)
    return live.estimate(work, inputs)


def result_pages(record: str, target: Target, texts: Mapping[str, bytes]) -> dict[str, bytes]:
    """What people read of a result: the model card of a folder, and a calibration's report."""
    content = json.loads(record)
    card = {} if target.single else report.card_files(content, texts)
    return {**card, **_calibration_report(content, target)}


def _calibration_report(content: Mapping[str, Any], target: Target) -> dict[str, bytes]:
    """The report, made from the record; a warning where it cannot be drawn here."""
    if not content["recipe"]["calibrate"]:
        return {}
    name = target.named(REPORT)
    try:
        return {name: report.render(content).encode()}
    except MissingExtraError as error:
        warn([f"no {name} is written: {error.problem}; {error.remedy}, then "
              f"magmerge report {target.path}"])  # fmt: skip
        return {}


def _result(folder: Path, name: str) -> Model:
    """A document's result, which messages and records call by its name, wherever it lies."""
    if adapts(folder):
        return folder
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    checkpoint.source = name
    return checkpoint


def named_models(recipe: Recipe) -> dict[str, str]:
    """What the recipe reads, by the keys of a call's models."""
    roles = {"base": recipe.base, "merged": recipe.merged}
    experts = {f"{EXPERT}{name}": path for name, path in recipe.experts.items()}
    return {key: path for key, path in {**roles, **experts}.items() if path is not None}
