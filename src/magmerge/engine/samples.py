"""The samples of a recipe: as its caller says them, checked, and as inputs of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from magmerge import data
from magmerge.core import registry
from magmerge.core.errors import ParameterError, UnknownNameError, shortened, suggestion
from magmerge.core.lazy import load
from magmerge.core.models import MEMORY
from magmerge.core.recipe import Calibration, Recipe, Samples
from magmerge.core.validation import AUTO
from magmerge.engine.job import Job, Live, Models

if TYPE_CHECKING:
    from magmerge.data.rows import Inputs, SampleOptions

CHECK = "magmerge.engine.statistics:check_statistics"
HELD = 8
"""Further rows of each source that a verdict is drawn from, where no check keeps rows aside."""
SETTINGS = ("order", "precision", "batchnorm")
"""Settings of the run that a recipe's samples hold beside what is drawn."""


def samples_of(
    arguments: Mapping[str, Any], experts: Sequence[str], calibrations: Sequence[Calibration]
) -> tuple[Samples | None, Live]:
    """The recipe's samples, and what of them is no data, from a verb's own arguments.

    ParameterError where samples are given in vain, or are lacking.
    """
    source, model = arguments["data"], arguments["model"]
    if isinstance(source, Iterator):
        # Every expert reads it, from the start.
        source = list(source)
    may = AUTO in (arguments["method"], *(c.method for c in calibrations)) and source is not None
    calibrations = [c for c in calibrations if c.method != AUTO]
    hungry = [name for name in map(_hungry, calibrations) if name] or [AUTO] * may
    files = arguments.get("statistics")
    if files:
        load(CHECK)(files, experts, calibrations, samples=source is not None)
    else:
        _check_need(hungry, source)
    others = {"order": arguments["order"] != "once", "batchnorm": arguments["batchnorm"]}
    others |= {name: arguments[name] not in (None, False) for name in ("offload", "model", "build")}
    if (files or not hungry) and any(others.values()):
        told = ", ".join(name for name, present in others.items() if present)
        problem, remedy = (
            ("statistics are given, so that no model is run", "give samples in their place")
            if files
            else ("only a calibration that looks at inputs takes this", "add --calibrate fsc")
        )
        raise ParameterError(f"{told}: {problem}", remedy=f"{remedy}, or drop it")
    if files or not hungry:
        return None, Live()
    options = options_of(arguments["samples"], arguments["seed"])
    sources = by_expert(source, experts)
    fields = {
        "data": {name: _spoken(source) for name, source in sources.items()},
        "samples": options.samples,
        "seed": options.seed,
        "model": model if isinstance(model, str) else None,
        "build": arguments["build"],
        "prepared": options.prepared,
        **{name: arguments[name] for name in SETTINGS},
    }
    if model is not None and not isinstance(model, str):
        fields["model"] = _spoken(model)
    try:
        samples = Samples(**fields)
    except ValidationError as error:
        raise load("magmerge.core.recipe_faults:explained")(
            error, "the arguments", Samples.model_fields
        ) from error
    module = None if isinstance(model, str) else model
    return samples, Live(data=sources, module=module, build=True)


def options_of(samples: object, seed: int) -> SampleOptions:
    """What is drawn from each source, and how, from a number or the fields of `SampleOptions`."""
    if isinstance(samples, data.SampleOptions):
        return samples
    if not isinstance(samples, int | Mapping):
        raise ParameterError(
            f"samples is {samples!r}",
            remedy="give a number, or the fields of SampleOptions as a mapping",
        )
    fields: dict[str, Any] = {"samples": samples} if isinstance(samples, int) else dict(samples)
    known = data.SampleOptions.__slots__
    for name in fields:
        if name not in known:
            raise UnknownNameError(
                f"samples has no setting {name!r}", remedy=suggestion(name, known)
            )
    return replace(data.SampleOptions(seed=seed), **fields)


def by_expert(source: Any, experts: Sequence[str]) -> dict[str, Any]:
    """The source of each expert's samples, from one for each or one for all."""
    if not isinstance(source, Mapping) or not all(isinstance(name, str) for name in source):
        return dict.fromkeys(experts, source)
    for name in source:
        if name not in experts:
            raise UnknownNameError(
                f"data is given for {name!r}, which is no expert", remedy=suggestion(name, experts)
            )
    lacking = [name for name in experts if name not in source]
    if lacking:
        raise ParameterError(
            f"no data is given for {shortened(lacking)}",
            remedy=f"add --data {lacking[0]}=FILE (tune: --unlabelled); one source for all is "
            "FILE alone",
        )
    return dict(source)


def check_samples(recipe: Recipe, live: Live) -> Live:
    """The live part with a source for each expert; errors where a recipe lacks samples, has them in
    vain, or names code that its caller did not allow.
    """
    hungry = [name for name in map(_hungry, recipe.calibrate) if name]
    samples = recipe.samples
    if recipe.keep_best:
        load("magmerge.engine.keep_best:check_keep_best")(recipe)
    if recipe.statistics:
        told = samples is not None
        load(CHECK)(recipe.statistics, recipe.experts, recipe.calibrate, samples=told)
        return live
    _check_need(hungry, None if samples is None else samples.data)
    if samples is None:
        return live
    sources = by_expert(samples.data if live.data is None else live.data, [*recipe.experts])
    for name, source in sources.items():
        if live.data is None and str(source).endswith(MEMORY):
            raise ParameterError(
                f"the samples of {name} were {source}, which no file holds",
                remedy="give them with the call: data={...}",
            )
    if samples.build is not None and not live.build:
        raise ParameterError(
            f"the recipe names code that builds the model: {samples.build}",
            remedy="allow it with --allow-code (allow_code=True), if you trust the recipe",
        )
    if live.module is None and samples.model is not None and samples.model.endswith(MEMORY):
        raise ParameterError(
            f"the model that is run was {samples.model}", remedy="give it with the call: model="
        )
    return replace(live, data=sources)


def in_its_order(recipe: Recipe) -> Recipe:
    """The recipe with its samples in forward order where a calibrator asks for that."""
    items = [registry.calibrators.get(calibration.method) for calibration in recipe.calibrate]
    forward = any(item.needs == "inputs" and item.order == "forward" for item in items)
    if recipe.samples is None or not forward:
        return recipe
    samples = recipe.samples.model_copy(update={"order": "forward"})
    return recipe.model_copy(update={"samples": samples})


def with_origin(live: Live, recipe: Recipe, layout: Any, models: Models) -> Live:
    """The live part with what tells which model the tensors are: a module, or a folder."""
    if recipe.samples is None:
        return live
    if hasattr(layout, "named_modules"):
        if live.module is None and (recipe.samples.model or recipe.samples.build):
            raise ParameterError(
                f"{recipe.samples.build or recipe.samples.model}: the merge is a module in memory, "
                "which is run itself",
                remedy="drop build and model, or give the base as a folder",
            )
        return replace(live, origin=layout)
    folders = [models.layout.folder, None if models.base is None else models.base.folder]
    origins = (f for f in folders if f is not None and (f / "config.json").is_file())
    return replace(live, origin=next(origins, None))


def inputs_of(job: Job) -> dict[str, list[Inputs]]:
    """The model's inputs, drawn and prepared with the tokenizer or processor of its folder."""
    if job.recipe.samples is None:
        return {}
    return data.calibration_inputs(job.live.data, **_preparation(job, job.recipe.samples))


def held_inputs(job: Job) -> dict[str, list[Inputs]]:
    """Further rows of the same sources, which the calibration does not draw, at most HELD of each.

    Of those only that have more rows; what lies in memory is drawn whole.
    """
    if job.recipe.samples is None:
        return {}
    how = _preparation(job, job.recipe.samples)
    return data.further_inputs(job.live.data, HELD, **how)


def _preparation(job: Job, samples: Samples) -> dict[str, Any]:
    """Whose tokenizer prepares rows, and how they are drawn."""
    base = job.models.base
    folder = job.donor or (None if base is None else base.folder)
    prepared = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in samples.prepared.items()
    }
    options = options_of({"samples": samples.samples, **prepared}, samples.seed)
    return {"folder": folder, "options": options}


def _check_need(hungry: Sequence[str], source: object) -> None:
    if len(hungry) > 1:
        raise ParameterError(
            f"{' and '.join(hungry)} both look at inputs", remedy="calibrate with one of them"
        )
    if hungry and source is None:
        raise ParameterError(
            f"{hungry[0]} needs data",
            remedy="give a few unlabelled samples of each expert's task: --data NAME=FILE "
            '(data={"expert": samples})',
        )
    if source is not None and not hungry:
        raise ParameterError(
            "data is given, but no calibration looks at it",
            remedy="add --calibrate fsc (or --method fsc), or drop the data",
        )


def _hungry(calibration: Calibration) -> str | None:
    """The calibrator's name, if it looks at inputs."""
    item = registry.calibrators.get(calibration.method)
    return item.name if item.needs == "inputs" else None


def _spoken(source: Any) -> str:
    """What the recipe calls a source: its path or name, or its type."""
    if isinstance(source, str | Path):
        return str(source)
    return f"a {type(source).__name__}{MEMORY}"
