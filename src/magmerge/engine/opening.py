"""A recipe's models, opened and stamped, and brought to one form: names, ties, tokens, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from magmerge.checkpoints import adapters
from magmerge.checkpoints.digests import stamp
from magmerge.checkpoints.donor import same_tokens
from magmerge.checkpoints.experts import BASE, align, open_expert, open_whole
from magmerge.checkpoints.kinds import quantised_faults
from magmerge.checkpoints.loader import Model, adapts, folds, open_checkpoint
from magmerge.core.errors import (
    MagmergeError,
    ParameterError,
    StructureError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.lazy import load
from magmerge.core.machine import Machine
from magmerge.core.models import MEMORY, Checkpoint, Expert
from magmerge.core.recipe import AdapterOutput, ModelOutput, Recipe
from magmerge.engine.job import Models

if TYPE_CHECKING:
    from magmerge.checkpoints.names.mapping import Renames

ROLES = ("base", "merged")
EXPERT = "experts."
"""What stands before an expert's name among a call's models, where it could be a role's too."""


def open_models(
    recipe: Recipe, models: Mapping[str, Model], machine: Machine | None = None
) -> Models:
    """The recipe's models, those of the call in place of its paths; each file is stamped. Those of
    the hub are fetched.

    With an output's `names` (a family of CLIP) they are seen under these.
    """
    own = {role: path for role in ROLES if (path := getattr(recipe, role)) is not None}
    roles = {role: _model(role, path, models) for role, path in own.items()}
    named = {
        name: _model(_expert_key(name, models), path, models)
        for name, path in recipe.experts.items()
    }
    (roles, experts), told = _pinned((roles, named), machine)
    models = {**models, **roles}
    based = bool(own)
    alone = None if based else adapters.adapters_alone(experts)
    renames = _renames(recipe, based=alone is None)
    if alone is not None:
        union, members = alone
        return Models(union, None, members, stamps=_stamps(members), union=union, notes=told)
    if recipe.calibrate and recipe.base is None:
        raise MagmergeError(
            "a calibration needs to know what the merge changed: no base is given",
            remedy="name the base with --base (base=, base: in a recipe); slerp and passthrough of "
            "mergekit's recipes have none: drop calibrate, or merge by a method of task vectors",
        )
    seen = _with_experts(_whole_models(recipe, models, experts), recipe, experts, renames)
    seen = replace(seen, notes=(*told, *seen.notes))
    if recipe.moe is not None:
        mixture: Models = load("magmerge.engine.mixtures:mixture_of")(recipe, seen)
        return mixture
    return _in_one_form(recipe, seen)


class Whole(NamedTuple):
    """A recipe's base and merged model, opened; the result has the tensors of the latter."""

    base: Checkpoint | None
    merged: Checkpoint | None


def _whole_models(
    recipe: Recipe, models: Mapping[str, Model], experts: Mapping[str, Model]
) -> Whole:
    """The base and the merged model. StructureError where one of them is quantised."""
    chosen, names = _choices(recipe), _family(recipe)
    base = merged = None
    if recipe.base is not None:
        base = _under(open_whole(BASE, models["base"], chosen("base")), names)
    if recipe.merged is not None:
        merged = _under(open_whole("merged model", models["merged"], chosen("merged")), names)
    if base is not None and merged is not None:
        base = align(base, merged)
    faults = quantised_faults([merged, base], merged or base)
    if faults:
        # No adapter finds its place on such a base, so they are told before it is tried.
        wholes = [open_checkpoint(model) for model in experts.values() if not adapts(model)]
        raise StructureError([*faults, *quantised_faults(wholes)])
    return Whole(base, merged)


def _with_experts(
    whole: Whole, recipe: Recipe, experts: Mapping[str, Model], renames: Renames | None
) -> Models:
    """All models, the experts under the names of the base, or of the first where there is none."""
    chosen, layout = _choices(recipe), whole.merged or whole.base
    opened: list[Expert] = []
    for name, path in experts.items():
        model = path
        if whole.base is None and isinstance(path, str) and folds(path):
            # What the first expert is, is no base: a model with its adapter is a whole one there.
            model = open_checkpoint(path, chosen(name))
        opened.append(open_expert(name, model, whole.base or layout, renames, chosen(name)))
        if layout is None:
            layout = _under(opened[0].whole, _family(recipe))
    if layout is None:
        raise MagmergeError("no model is given", remedy="name a base and some experts")
    if recipe.base is not None or recipe.method is not None:
        faults = quantised_faults([layout, *(expert.whole for expert in opened)], layout)
        if faults:
            raise StructureError(faults)
    files = [model for model in (layout, *whole) if model is not None]
    return Models(
        layout,
        whole.base,
        opened,
        whole.merged,
        stamps=_stamps([*files, *opened]),
        settings=getattr(layout, "settings", {}),
        faults=() if renames is None else renames.faults(),
    )


def _in_one_form(recipe: Recipe, models: Models) -> Models:
    """The models with what is one tensor in some of them and two in others, rows of tokens, and
    what differs in shape on purpose, told alike in all; and the blocks of slices.
    """
    alike = all(_alike(model, models.layout) for model in models.others)
    if not alike and models.union is None:
        models = load("magmerge.engine.ties:in_one_form")(models)
    models = _on_one_vocabulary(recipe, models)
    if not alike:
        models = load("magmerge.engine.shapes:told_apart")(models)
    return load("magmerge.engine.slices:in_slices")(recipe, models) if recipe.slices else models


def _alike(model: Checkpoint | Expert, layout: Checkpoint) -> bool:
    """Whether it has the layout's names, shapes and ties; an adapter: and trains no tied one."""
    if getattr(model, "apart", None) is not None or model.ties != layout.ties:
        return False
    names = model.specs.keys() == layout.specs.keys()
    return names and all(s.shape == layout.specs[n].shape for n, s in model.specs.items())


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


def _choices(recipe: Recipe) -> Callable[[str], str | None]:
    """Which weights each model has that holds several, by role or expert's name."""
    choices = recipe.weights
    if not isinstance(choices, dict):
        return lambda _: choices
    for name in choices:
        if name not in recipe.models:
            raise UnknownNameError(
                f"the weights of {name!r} are chosen, and the recipe reads no such model",
                remedy=suggestion(name, recipe.models),
            )
    return choices.get


def _renames(recipe: Recipe, *, based: bool) -> Renames | None:
    """The recipe's map of names; None without one. ParameterError for adapters without a base."""
    if not recipe.rename:
        return None
    if not based:
        raise ParameterError(
            "rename speaks of names that a base has, and these are adapters without one",
            remedy="name the base with --base (base=), or drop --rename (rename=)",
        )
    renames: Renames = load("magmerge.checkpoints.names.mapping:Renames")(recipe.rename)
    return renames


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
        stem = f"expert-{number}"
        if isinstance(model, str | Path):
            stem = load("magmerge.core.model_strings:short_name")(str(model))
        name, repeat = stem.removesuffix(".safetensors"), 2
        while name in models:
            name, repeat = f"{stem}-{repeat}", repeat + 1
        models[name] = model
    return models


def _expert_key(name: str, models: Mapping[str, Model]) -> str:
    """The key of an expert among a call's models: its name, where no role is called so."""
    key = f"{EXPERT}{name}"
    return key if key in models or name in ROLES else name


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


def _pinned(
    tables: Iterable[Mapping[str, Model]], machine: Machine | None
) -> tuple[list[dict[str, Model]], tuple[str, ...]]:
    """Models of the hub by their commits, so that all that is read of one is of one; and notes."""
    notes: list[str] = []
    every: list[dict[str, Model]] = []
    for table in tables:
        every.append(dict(table))
        for key, model in table.items():
            if isinstance(model, str) and not lexists(model):
                every[-1][key], told = load("magmerge.checkpoints.named:pinned")(model, machine)
                notes += told
    return every, tuple(dict.fromkeys(notes))


def _family(recipe: Recipe) -> str | None:
    """The family of names that the result gets, if the recipe says one."""
    return recipe.output.names if isinstance(recipe.output, ModelOutput) else None


def _under(checkpoint: Checkpoint | None, names: str | None) -> Checkpoint | None:
    if checkpoint is None or names is None:
        return checkpoint
    if hasattr(checkpoint, "parts"):
        raise ParameterError(
            f"a pipeline keeps its names, and {names} are those of one model",
            source=checkpoint.source,
            remedy="drop --format (naming=), or give one part's folder",
        )
    view: Checkpoint = load("magmerge.checkpoints.clip:in_family")(checkpoint, names)
    return view


def _stamps(models: Iterable[Checkpoint | Expert]) -> dict[Path, str]:
    return {file: stamp(file) for model in models for file in model.files}
