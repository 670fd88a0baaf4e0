"""From a recipe and the models of a call to a job: names and parameters first, then the files."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from magmerge.checkpoints import adapters, clip
from magmerge.checkpoints.digests import stamp
from magmerge.checkpoints.donor import check_donor, same_tokens
from magmerge.checkpoints.experts import BASE, open_expert, open_whole
from magmerge.checkpoints.loader import Model
from magmerge.core.errors import (
    MagmergeError,
    OutputError,
    ParameterError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.lazy import load
from magmerge.core.machine import CPU, Machine
from magmerge.core.models import MEMORY, Checkpoint, Expert
from magmerge.core.recipe import AdapterOutput, ModelOutput, Recipe
from magmerge.core.validation import (
    check_calibrations,
    check_method,
    check_naming,
    check_rank,
)
from magmerge.engine.job import Job, Live, Models
from magmerge.engine.samples import check_samples, in_its_order, with_origin
from magmerge.engine.stages import ENERGY, bind
from magmerge.linalg.device import open_device

ROLES = ("base", "merged")
EXPERT = "experts."
"""What stands before an expert's name among a call's models, where it could be a role's too."""


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
    machine, live = machine or Machine(), live or Live()
    recipe = in_its_order(check_recipe(recipe))
    _check_keys(recipe, models)
    live = check_samples(recipe, live)
    opened = open_models(recipe, models)
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
    return Job(recipe, opened, stages, machine, device, donor, live, tuple(documents))


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every parameter written out; errors for what does not go together."""
    method, params = check_method(recipe.method, recipe.params)
    calibrations = check_calibrations(recipe.calibrate)
    if not calibrations and (recipe.skip or recipe.gate == "off"):
        raise ParameterError(
            "skip and gate speak of a calibration, and none is asked for",
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
    return recipe.model_copy(update={"method": method, "params": params, "calibrate": calibrations})


def _check_adapter(output: AdapterOutput) -> None:
    """Errors for a naming, rank or energy that means nothing."""
    if output.naming is not None:
        check_naming(output.naming)
    check_rank(output.rank, ENERGY if output.energy is None else output.energy)
    if output.energy is not None and output.rank != "auto":
        raise ParameterError("energy speaks of rank auto", remedy="add --rank auto (rank=)")


def open_models(recipe: Recipe, models: Mapping[str, Model]) -> Models:
    """The recipe's models, those of the call in place of its paths; each file is stamped.

    With an output's `names` (a family of CLIP) they are seen under these.
    """
    base = None if recipe.base is None else _model("base", recipe.base, models)
    merged = None if recipe.merged is None else _model("merged", recipe.merged, models)
    experts = {
        name: _model(_expert_key(name, models), path, models)
        for name, path in recipe.experts.items()
    }
    alone = adapters.adapters_alone(experts) if base is None and merged is None else None
    if alone is not None:
        union, members = alone
        return Models(union, None, members, stamps=_stamps(members), union=union)
    if recipe.calibrate and base is None:
        raise MagmergeError(
            "a calibration needs to know what the merge changed: no base is given",
            remedy="name the base with --base (base=)",
        )
    names = recipe.output.names if isinstance(recipe.output, ModelOutput) else None
    opened_base = _under(None if base is None else open_whole(BASE, base), names)
    opened_merged = _under(None if merged is None else open_whole("merged model", merged), names)
    layout: Checkpoint | None = opened_merged or opened_base
    opened: list[Expert] = []
    for name, model in experts.items():
        opened.append(open_expert(name, model, opened_base))
        if layout is None:
            layout = _under(opened[0].whole, names)
    if layout is None:
        raise MagmergeError("no model is given", remedy="name a base and some experts")
    whole = [model for model in (layout, opened_base, opened_merged) if model is not None]
    stamps = _stamps([*whole, *opened])
    return _on_one_vocabulary(recipe, Models(layout, opened_base, opened, opened_merged, stamps))


def _on_one_vocabulary(recipe: Recipe, models: Models) -> Models:
    """The models, their rows of tokens matched where they may not be the same in all."""
    said = recipe.tokenizer or recipe.tokens or recipe.pad_to_multiple_of
    nothing = recipe.method is None and recipe.merged is None
    if nothing or isinstance(recipe.output, AdapterOutput):
        if said:
            raise ParameterError(
                "tokenizer and tokens speak of a merge into a whole model",
                remedy="drop them, or drop rank, energy and naming",
            )
        return models
    others = [model for model in (models.base, *models.experts) if model is not None]
    if not said and same_tokens([models.layout, *others]):
        return models
    seen: Models = load("magmerge.engine.vocabularies:on_one_vocabulary")(recipe, models)
    return seen


def experts_by_name(experts: Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    """Experts by name: the mapping's own keys, or the last part of each path, made unique."""
    if isinstance(experts, Mapping):
        if any(
            hasattr(model, "dtype") and not hasattr(model, "modules") for model in experts.values()
        ):
            raise ParameterError(
                "experts is one model, not several", remedy="put it into a list: experts=[model]"
            )
        return {str(name): model for name, model in experts.items()}
    if isinstance(experts, str | Path) or not isinstance(experts, Iterable):
        raise ParameterError(
            f"experts is one {type(experts).__name__}, not several models",
            remedy="give a list of models, or a mapping from names to models",
        )
    models: dict[str, Model] = {}
    for number, model in enumerate(experts, start=1):
        stem = Path(model).resolve().name if isinstance(model, str | Path) else f"expert-{number}"
        name, repeat = stem.removesuffix(".safetensors"), 2
        while name in models:
            name, repeat = f"{stem}-{repeat}", repeat + 1
        models[name] = model
    return models


def _expert_key(name: str, models: Mapping[str, Model]) -> str:
    """The key of an expert among a call's models: its name, where no role is called so."""
    key = f"{EXPERT}{name}"
    return key if key in models or name in ROLES else name


def _check_keys(recipe: Recipe, models: Mapping[str, Model]) -> None:
    """UnknownNameError for a model of the call that the recipe has no place for."""
    known = [*ROLES, *recipe.experts]
    for key in models:
        if key.removeprefix(EXPERT) not in known:
            raise UnknownNameError(
                f"the recipe reads no model {key!r}", remedy=suggestion(key, known)
            )


def _model(role: str, path: str, models: Mapping[str, Model]) -> Model:
    """What the call gives for a role or an expert's name, else the recipe's own path."""
    if role in models:
        return models[role]
    if path.endswith(MEMORY):
        raise MagmergeError(
            f"the {role} of this recipe was {path}, which no file holds",
            remedy=f"give it with the call: models={{{role!r}: ...}}",
        )
    return path


def _under(checkpoint: Checkpoint | None, names: str | None) -> Checkpoint | None:
    if checkpoint is None or names is None:
        return checkpoint
    return clip.in_family(checkpoint, names)


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
    models_by_role = {"base": models.base, "merged": models.merged}
    roles = {
        role: path if model is None or path in names else model.source
        for role, model in models_by_role.items()
        for path in (getattr(recipe, role),)
    }
    experts = {
        expert.name: path if path in names else expert.source
        for expert in models.experts
        for path in (recipe.experts[expert.name],)
    }
    return recipe.model_copy(update={**roles, "experts": experts, "output": output})


def _donor(output: ModelOutput, models: Models) -> Path | None:
    """The folder that config and tokenizer are taken from.

    A model under another family's names has none of its own: its config is for the old ones.
    """
    if output.donor is None:
        renamed = output.names is not None and getattr(models.layout, "left_out", None) is not None
        return None if renamed else models.layout.folder
    folder = Path(output.donor)
    if not folder.is_dir():
        raise OutputError(
            "the donor of config and tokenizer is no folder",
            source=folder,
            remedy="name the folder of a model with --donor (donor=)",
        )
    check_donor(folder, models.layout, models.settings, models.texts)
    return folder


def _stamps(models: Iterable[Checkpoint | Expert]) -> dict[Path, str]:
    return {file: stamp(file) for model in models for file in model.files}
