"""From a recipe and the models of a call to a job: names and parameters first, then the files."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from os.path import lexists
from pathlib import Path

from magmerge.checkpoints.donor import check_donor
from magmerge.checkpoints.loader import Model
from magmerge.core.errors import (
    OutputError,
    ParameterError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.lazy import load
from magmerge.core.machine import CPU, Machine, hub_read
from magmerge.core.parameters import BOUND
from magmerge.core.recipe import AdapterOutput, ModelOutput, Recipe
from magmerge.core.validation import (
    check_calibrations,
    check_method,
    check_naming,
    check_rank,
    check_rename,
    is_auto,
)
from magmerge.engine.job import Job, Live, Models
from magmerge.engine.notes import weakened
from magmerge.engine.opening import EXPERT, ROLES, open_models
from magmerge.engine.samples import check_samples, in_its_order, with_origin
from magmerge.engine.stages import ENERGY, bind
from magmerge.linalg.device import open_device


def open_job(
    recipe: Recipe,
    models: Mapping[str, Model],
    *,
    machine: Machine | None = None,
    live: Live | None = None,
    documents: Sequence[Recipe] = (),
) -> Job:
    """The job of a recipe. `models` are what the call gives in place of paths, by role or name;
    `documents` the recipes whose results it names as models.

    All that is wrong with names and parameters is found before any file is opened. Raises
    MagmergeError's children.
    """
    machine, live, said = machine or Machine(), live or Live(), recipe.params
    recipe = in_its_order(check_recipe(recipe))
    _check_keys(recipe, models)
    live = check_samples(recipe, live)
    with hub_read(machine.hub):
        opened = open_models(recipe, models, machine)
    if recipe.drops_idle_filters:
        recipe = load("magmerge.engine.idle_filters:without_idle_filters")(recipe, opened)
    if recipe.chat_template:
        opened = load("magmerge.engine.chat_templates:with_chat_template")(recipe, opened)
    recipe = _resolved(recipe, opened, {document.name for document in documents})
    if opened.union is not None and machine.device != CPU:
        raise ParameterError(
            f"adapters are merged on the cpu, not on {machine.device}",
            remedy="drop --device (device=)",
        )
    device = open_device(machine.device)
    output = recipe.output
    donor = _donor(output, opened) if isinstance(output, ModelOutput) else None
    layout = models.get("merged" if recipe.merged is not None else "base")
    live = with_origin(live, recipe, layout, opened)
    stages = bind(recipe)
    job = Job(recipe, opened, stages, machine, device, donor, live, tuple(documents))
    if recipe.statistics:
        job = load("magmerge.engine.statistics:with_statistics")(job)
        opened = job.models
    notes = (*recipe.notes, *opened.notes, *weakened(said, job))
    return replace(job, models=replace(opened, notes=notes))


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every parameter written out; errors for what does not go together."""
    if is_auto(recipe):
        raise ParameterError(
            "the recipe says auto, and nothing is chosen here",
            remedy="merge it first: magmerge.yaml beside the result names what was chosen",
        )
    method, params = check_method(recipe.method, recipe.params)
    calibrations = check_calibrations(recipe.calibrate)
    if not calibrations and (recipe.skip or recipe.gate == "off" or recipe.bound != BOUND):
        raise ParameterError(
            "skip, gate and bound speak of a calibration, and none is asked for",
            remedy="add --calibrate wsc, or drop them",
        )
    if not calibrations and recipe.sensitive:
        raise ParameterError(
            "a list of sensitive layers without a gated calibration has no effect",
            remedy="add --calibrate and leave --gate on, or drop --sensitive",
        )
    if recipe.merged is not None and not calibrations:
        raise ParameterError(
            "a merged model is given, and no calibration of it", remedy="add calibrate: wsc"
        )
    if recipe.merged is not None and method is not None:
        raise ParameterError(
            f"a merged model is given, and a method that would merge anew: {method}",
            remedy="drop merged:, or drop method: to calibrate the merged model",
        )
    if method is None and recipe.params:
        raise ParameterError(
            "parameters are given, and no method that takes them", remedy="name the method"
        )
    if isinstance(recipe.output, AdapterOutput):
        _check_adapter(recipe.output)
    check_rename(recipe.rename, recipe.experts)
    told = {"method": method, "params": params, "calibrate": calibrations}
    if recipe.moe is not None:
        told["moe"] = load("magmerge.core.moe:checked")(recipe)
    return recipe.model_copy(update=told)


def _check_adapter(output: AdapterOutput) -> None:
    """Errors for a naming, rank or energy that means nothing."""
    if output.naming is not None:
        check_naming(output.naming)
    check_rank(output.rank, ENERGY if output.energy is None else output.energy)
    if output.energy is not None and output.rank != "auto":
        raise ParameterError("energy speaks of rank auto", remedy="add --rank auto (rank=)")


def _check_keys(recipe: Recipe, models: Mapping[str, Model]) -> None:
    """UnknownNameError for a model of the call that the recipe has no place for."""
    known = [*ROLES, *recipe.experts]
    for key in models:
        if key.removeprefix(EXPERT) not in known:
            raise UnknownNameError(
                f"the recipe reads no model {key!r}", remedy=suggestion(key, known)
            )


def _resolved(recipe: Recipe, models: Models, names: Container[str | None]) -> Recipe:
    """The recipe with the models as they were found, and the output that they can have.

    Those of `names` are results of other documents, and stay named so.
    """
    output, alone = recipe.output, models.union is not None
    if alone and isinstance(output, ModelOutput):
        if output.donor is not None:
            raise ParameterError(
                "an adapter takes no config and tokenizer from a donor",
                remedy="drop --donor (donor=), or merge into a whole model with --base (base=)",
            )
        output = AdapterOutput(dtype=output.dtype)
    if isinstance(output, AdapterOutput) and not alone and models.base is None:
        raise ParameterError(
            "rank, energy and naming speak of adapters, and these are whole models without a base",
            remedy="drop them, or name the base with --base (base=)",
        )
    if isinstance(output, AdapterOutput) and not alone and output.rank in (None, "exact"):
        raise ParameterError(
            f"an adapter on a base has no rank of inputs: its rank is {output.rank or 'not given'}",
            remedy="give a number (--rank 16), or --rank auto --energy 0.99",
        )
    if isinstance(output, ModelOutput) and output.donor is not None and not lexists(output.donor):
        donor = load("magmerge.checkpoints.named:pinned_texts")(output.donor)
        output = output.model_copy(update={"donor": donor})
    if isinstance(output, ModelOutput) and output.dtype is None:
        output = output.model_copy(update={"dtype": getattr(models.layout, "written", None)})
    models_by_role = {"base": models.base, "merged": models.merged}
    roles = {
        role: path if model is None or path is None or path in names else model.source
        for role, model in models_by_role.items()
        for path in (getattr(recipe, role),)
    }
    experts = {
        expert.name: path if path in names else expert.source
        for expert in models.experts
        for path in (recipe.experts[expert.name],)
    }
    told = {**roles, "experts": {**recipe.experts, **experts}, "output": output}
    if recipe.moe is not None:
        told["moe"] = {**recipe.moe, "shape": models.settings["model_type"]}
    return recipe.model_copy(update=told)


def _donor(output: ModelOutput, models: Models) -> Path | None:
    """The folder that config and tokenizer are taken from.

    A model under another family's names has none of its own: its config is for the old ones.
    """
    if output.donor is None:
        renamed = output.names is not None and getattr(models.layout, "left_out", None) is not None
        return None if renamed else models.layout.folder
    folder = Path(output.donor)
    if not lexists(folder):
        folder = load("magmerge.checkpoints.named:folder_of_texts")(output.donor)
    if not folder.is_dir():
        raise OutputError(
            "the donor of config and tokenizer is no folder",
            source=folder,
            remedy="name the folder of a model with --donor (donor=)",
        )
    check_donor(folder, models.layout, models.settings, models.texts)
    return folder
