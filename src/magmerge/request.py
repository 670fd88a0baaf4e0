"""From the front door's arguments to a checked recipe and opened models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from magmerge import dtypes, registry
from magmerge.adapters.sources import adapter_sources
from magmerge.adapters.union import AdapterUnion
from magmerge.checkpoints import open_expert
from magmerge.checkpoints.opening import BASE, Model, open_whole
from magmerge.digests import stamp
from magmerge.errors import MagmergeError, ParameterError
from magmerge.filters import varies
from magmerge.models import Checkpoint, Expert, Sources
from magmerge.recipe import (
    AdapterOutput,
    Calibrations,
    Recipe,
    check_calibrations,
    check_parameters,
    explained,
    keywords,
    read_sensitive,
)
from magmerge.wanted import Wanted

Experts = Sequence[Model] | Mapping[str, Model]
Gate = Literal["on", "off"]


def prepare(
    *,
    base: Model | None,
    experts: Experts,
    merged: Model | None = None,
    method: str | None = None,
    params: Mapping[str, Any] | None = None,
    calibrate: Calibrations | list[Calibrations] | tuple[Calibrations, ...] = None,
    gate: Gate = "on",
    sensitive: str | Path | Iterable[str] = (),
    skip: Iterable[str] = (),
    ignore: Iterable[str] = (),
    dtype: str | None = None,
    seed: int = 0,
    wanted: Wanted | None = None,
    output: AdapterOutput | None = None,
) -> tuple[Recipe, Sources]:
    """Check names and parameters first, then open the models: the cheap mistakes come first."""
    method, checked = check_method(method, params or {})
    calibrations = check_calibrations(calibrate)
    if gate not in ("on", "off"):
        raise ParameterError(f"the gate is {gate!r}", remedy="it is on or off")
    if not calibrations and (patterns(skip) or gate == "off"):
        raise ParameterError(
            "skip and gate speak of a calibration, and none is asked for",
            remedy="add --calibrate wsc, or drop them",
        )
    layers = (
        read_sensitive(Path(sensitive)) if isinstance(sensitive, str | Path) else sensitive or ()
    )
    asked = wanted or Wanted()
    asked.check(calibrations)
    out_dtype = None if dtype is None else dtypes.parse_float_dtype(str(dtype))
    opened = _open(base, experts, merged)
    if calibrations and opened.base is None:
        raise MagmergeError(
            "a calibration needs to know what the merge changed: no base is given",
            remedy="name the base with --base (base=)",
        )
    output = _output(output, opened)
    sampling = asked.sampling([expert.name for expert in opened.experts], seed, calibrations)
    recipe = _recipe(
        base=None if output or opened.base is None else opened.base.source,
        experts={expert.name: expert.source for expert in opened.experts},
        merged=None if opened.merged is None else opened.merged.source,
        method=method,
        params=checked,
        calibrate=calibrations,
        gate=gate,
        sensitive=tuple(layers),
        skip=patterns(skip),
        ignore=patterns(ignore),
        dtype=out_dtype,
        seed=seed,
        sampling=sampling,
        adapter=output,
    )
    return recipe, opened


def _output(asked: AdapterOutput | None, opened: Sources) -> AdapterOutput | None:
    """How a merged adapter is written; None where whole models are merged."""
    if isinstance(opened.layout, AdapterUnion):
        return asked or AdapterOutput()
    if asked is not None:
        raise ParameterError(
            "rank, energy and naming speak of adapters that are merged without a base",
            remedy="drop them, or drop the base and give adapters only",
        )
    return None


def check_method(
    method: str | None, params: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """A method's own name, and all its parameters."""
    if method is None:
        return None, {}
    item = registry.methods.get(method)
    checked = check_parameters(item, params)
    # Values that vary by layer are checked by the plan, which knows where they meet.
    if item.check is not None and not any(map(varies, checked.values())):
        item.check(**keywords(item, checked))
    return item.name, checked


def _recipe(**fields: Any) -> Recipe:
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise explained(error, "the arguments", Recipe.model_fields) from error


def patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def thread_count(threads: int | None) -> int:
    """The number of threads asked for, or one for each core this process may use."""
    if threads is None:
        # Only Linux tells which cores this process may use.
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not isinstance(threads, int) or threads < 1:
        raise ParameterError(f"{threads} threads", remedy="give one thread or more")
    return threads


def named(experts: Experts) -> dict[str, Model]:
    """Experts by name: the mapping's own keys, or the last part of each path, made unique."""
    if isinstance(experts, Mapping):
        if any(hasattr(one, "dtype") and not hasattr(one, "modules") for one in experts.values()):
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


def _open(base: Model | None, experts: Experts, merged: Model | None) -> Sources:
    models = named(experts)
    adapters = adapter_sources(models) if base is None and merged is None else None
    if adapters is not None:
        return adapters._replace(stamps=_stamps(adapters.experts))
    opened_base = None if base is None else open_whole(BASE, base)
    opened: list[Expert] = [open_expert(name, model, opened_base) for name, model in models.items()]
    opened_merged = None if merged is None else open_whole("merged model", merged)
    layout: Checkpoint | None = opened_merged or opened_base
    if layout is None:
        if not opened:
            raise MagmergeError("no model is given", remedy="name a base and some experts")
        layout = opened[0].whole
        assert layout is not None
    whole = [one for one in (layout, opened_base, opened_merged) if one is not None]
    stamps = _stamps([*whole, *opened])
    return Sources(layout, opened_base, opened, opened_merged, stamps)


def _stamps(models: Iterable[Checkpoint | Expert]) -> dict[Path, str]:
    return {file: stamp(file) for model in models for file in model.files}
