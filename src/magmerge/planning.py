"""Recipe and headers to a plan: every structural fault is found here, before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from magmerge import dtypes, registry
from magmerge.binding import bind
from magmerge.checkpoints.layout import lay_out
from magmerge.errors import ParameterError, UnknownNameError, suggestion
from magmerge.faults import (
    check_structure,
    dtype_warnings,
    matches,
    reading_notes,
    tied_everywhere,
)
from magmerge.kinds import kinds_of, read_model_config
from magmerge.memory import allow, bytes_at_work
from magmerge.models import Sources
from magmerge.recipe import Recipe
from magmerge.types import Action, Kind, Plan, Step, TensorSpec
from magmerge.varying import Varying, check_varying

UNCHANGED = "no expert changes it"


class _Fate(NamedTuple):
    action: Action
    reason: str
    twin: str | None = None


def make_plan(
    recipe: Recipe,
    sources: Sources,
    *,
    shard_size: int | None = None,
    file: str = "model.safetensors",
    metadata: Mapping[str, str] | None = None,
    copied: Sequence[str] = (),
    threads: int = 1,
    memory: int,
) -> Plan:
    """Decide what happens to each tensor and where its bytes go.

    Raises StructureError with all faults that `check_structure` finds.
    """
    config = read_model_config(sources.layout)
    kinds = kinds_of(sources.layout, config)
    check_structure(recipe, sources, config)
    varying = Varying(recipe, sources.layout.specs)
    steps = [
        _step(
            recipe, sources, name, kinds[name], _fate(recipe, sources, name, kinds[name]), varying
        )
        for name in sources.layout.specs
    ]
    check_varying(recipe, steps, len(sources.experts))
    if recipe.calibrate and not any(step.calibrated for step in steps):
        raise ParameterError(
            "no tensor of this model is calibrated",
            source=sources.layout.source,
            remedy="drop the calibration, or exempt less with --skip and --ignore",
        )
    steps = _mark_sensitive(steps, recipe)
    steps, shards = lay_out(steps, shard_size, file, metadata or {})
    count = len(sources.experts)
    sampling = recipe.sampling
    live = 0 if sampling is None else bytes_at_work(steps, sampling, threads)
    allowance = allow(steps, bind(recipe), experts=count, threads=threads, limit=memory, taken=live)
    return Plan(
        digest=recipe.digest,
        steps=tuple(steps),
        shards=tuple(shards),
        disk=sum(shard.size for shard in shards),
        memory=allowance.memory,
        room=allowance.room,
        piece=allowance.piece,
        live=live,
        copied=tuple(copied),
        warnings=(*reading_notes(sources), *dtype_warnings(sources)),
        choices=varying.choices(steps),
    )


def _fate(recipe: Recipe, sources: Sources, name: str, kind: Kind) -> _Fate:
    spec = sources.layout.specs[name]
    twin = sources.layout.ties.get(name)
    if twin is not None and tied_everywhere(sources, name):
        return _Fate("tie", f"shares its memory with {twin}", twin)
    if matches(name, recipe.ignore):
        return _Fate("carry", "ignored by the recipe")
    if kind == "buffer":
        return _Fate("carry", f"{dtypes.torch_name(spec.dtype)} values are not merged")
    if 0 in spec.shape:
        return _Fate("carry", "no entries")
    if sources.base and all(name in expert.untouched for expert in sources.experts):
        return _Fate("carry", UNCHANGED)
    if recipe.merged is not None:
        calibrated = _calibrators_take(recipe, kind) and not matches(name, recipe.skip)
        return _Fate("merge", kind) if calibrated else _Fate("carry", kind)
    if kind == "statistics":
        return _Fate("average", "running statistics are averaged")
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    if method is not None and method.kinds is not None and kind not in method.kinds:
        return _Fate("mean", f"{kind}: lambda times the mean, {method.name} is for matrices")
    return _Fate("merge", kind)


def _step(
    recipe: Recipe, sources: Sources, name: str, kind: Kind, fate: _Fate, varying: Varying
) -> Step:
    spec = sources.layout.specs[name]
    if recipe.dtype is not None and spec.dtype in dtypes.FLOATS:
        spec = TensorSpec(name, spec.shape, recipe.dtype)
    calibrated = (
        fate.action in ("merge", "mean")
        and _calibrators_take(recipe, kind)
        and not matches(name, recipe.skip)
    )
    models = [sources.layout, *([] if sources.base is None else [sources.base])]
    wide = any(name in model.specs and model.specs[name].dtype == "F64" for model in models)
    params = varying.at(name, fate.action)
    return Step(
        spec, kind, fate.action, fate.reason, calibrated, False, fate.twin, 0, 0, wide, params
    )


def _calibrators_take(recipe: Recipe, kind: Kind) -> bool:
    return any(kind in registry.calibrators.get(c.method).acts_on for c in recipe.calibrate)


def _mark_sensitive(steps: list[Step], recipe: Recipe) -> list[Step]:
    """Mark the layers of the sensitive list, by tensor name or by module name, never in part.

    A layer's weight and bias are marked together: they have one factor in feature space.
    """
    if not recipe.sensitive:
        return steps
    if not recipe.calibrate or recipe.gate == "off":
        raise ParameterError(
            "a list of sensitive layers without a gated calibration has no effect",
            remedy="add --calibrate and leave --gate on, or drop --sensitive",
        )
    names = [step.spec.name for step in steps if step.calibrated]
    layers: dict[str, set[str]] = {}
    for name in names:
        layers.setdefault(_layer_of(name), set()).add(name)
        layers.setdefault(name.rpartition(".")[0] or name, set()).add(name)
    for name in names:
        # torch's attention holds the projection of its output, and is one layer to a ranking.
        whole, _, last = name.rpartition(".out_proj.")
        if last and whole in layers:
            layers[whole].add(name)
    wanted = set()
    for entry in recipe.sensitive:
        found = layers.get(_layer_of(entry) if entry in names else entry)
        if found is None:
            raise UnknownNameError(
                f"the sensitive layer {entry!r} is none of the calibrated ones",
                remedy=suggestion(entry, layers),
            )
        wanted |= found
    return [
        Step(**{**_fields(step), "sensitive": True}) if step.spec.name in wanted else step
        for step in steps
    ]


def _layer_of(name: str) -> str:
    """The layer that a weight or bias belongs to; any other tensor is one of its own."""
    layer, _, last = name.rpartition(".")
    return layer if layer and last in ("weight", "bias") else name


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__slots__}


def describe(plan: Plan) -> dict[str, Any]:
    """The plan for a program to read: everything but the headers' bytes."""
    return {
        "digest": plan.digest,
        "steps": [{**asdict(step), "params": dict(step.params)} for step in plan.steps],
        "choices": [asdict(choice) for choice in plan.choices],
        "shards": [{"file": shard.file, "size": shard.size} for shard in plan.shards],
        "disk": plan.disk,
        "memory": plan.memory,
        "piece": plan.piece,
        "live": plan.live,
        "copied": list(plan.copied),
        "warnings": list(plan.warnings),
    }
