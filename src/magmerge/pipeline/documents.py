"""run(): a recipe, or the several documents of a recipe's file, to a result."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge import live, report
from magmerge.checkpoints.loader import Model, adapts, open_checkpoint
from magmerge.checkpoints.output.own_files import RECORD, REPORT
from magmerge.checkpoints.output.target import Target, check_apart_and_free
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.core.errors import MissingExtraError, ParameterError
from magmerge.core.lazy import load
from magmerge.core.machine import Machine, shown_progress
from magmerge.core.recipe import Recipe
from magmerge.core.validation import is_auto
from magmerge.engine.job import Findings, Job, Live, Work
from magmerge.engine.notes import warn
from magmerge.engine.opening import EXPERT
from magmerge.engine.outputs import named_path, target_for
from magmerge.engine.resolve import open_job
from magmerge.engine.result import Result
from magmerge.engine.run import run_job
from magmerge.engine.samples import held_inputs

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
    recipes = load("magmerge.pipeline.recipe_files:recipes_of")(recipe, models or {})
    if out is None and resume:
        raise ParameterError("resume speaks of an output", remedy="name one: out=")
    machine, names = machine or Machine(), [document.name for document in recipes]
    machine = replace(machine, progress=machine.progress or shown_progress())
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
        job = opened(document, in_memory, machine=call.machine, live=call.live, documents=resolved)
        passing = frozenset(filter(shelf.holds, job.models.stamps))
        job = replace(job, passing=passing, origins=tuple(origins))
        if not last:
            target = target_for(job, shelf.place(place), overwrite=True, resume=resume)
            result = run_job(job, target, measure=measured, report=result_pages)
            resolved.append(result.recipe)
            origins += _origins(result, names)
    return job


def opened(
    recipe: Recipe,
    models: Mapping[str, Model],
    *,
    machine: Machine | None = None,
    live: Live | None = None,
    documents: Sequence[Recipe] = (),
) -> Job:
    """The job as `open_job` gives it; of a recipe with auto, that of what was chosen."""
    if is_auto(recipe):
        how = {"machine": machine, "live": live, "documents": documents}
        chosen: Job = load("magmerge.pipeline.choosing:chosen_job")(recipe, models, how)
        return chosen
    return open_job(recipe, models, machine=machine, live=live, documents=documents)


def opened_to_plan(
    recipe: Recipe,
    models: Mapping[str, Model],
    *,
    machine: Machine | None = None,
    live: Live | None = None,
    documents: Sequence[Recipe] = (),
) -> Job:
    """The same from headers alone; of a recipe with auto, that of what would take the most."""
    if is_auto(recipe):
        how = {"machine": machine, "live": live, "documents": documents}
        costliest: Job = load("magmerge.pipeline.choosing:costliest_job")(recipe, models, how)
        return costliest
    return open_job(recipe, models, machine=machine, live=live, documents=documents)


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


def documents_models(
    recipe: Recipe, models: Mapping[str, Model], *, last: bool
) -> dict[str, Model]:
    """The models of a call that a document has a place for; all of them are the last one's."""
    keys = {"base", "merged", *recipe.experts, *(f"{EXPERT}{name}" for name in recipe.experts)}
    return {key: model for key, model in models.items() if last or key in keys}


def measured(work: Work, inputs: Mapping[str, Any]) -> Findings:
    """A pass into the live model, which is loaded where there are samples, or prompts."""
    if work.job.recipe.moe is not None:
        return live.routers(work)
    further = {} if work.stages.treatment.checked else held_inputs(work.job)
    return live.estimate(work, inputs, further)


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
