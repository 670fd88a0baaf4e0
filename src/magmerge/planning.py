"""Recipe and headers to a plan: every structural fault is found here, before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from magmerge import dtypes, registry
from magmerge.checkpoints.layout import lay_out
from magmerge.errors import ParameterError, StructureError, UnknownNameError, suggestion
from magmerge.kinds import kinds_of, read_model_config
from magmerge.recipe import Recipe
from magmerge.types import (
    Action,
    Calibrator,
    Checkpoint,
    Expert,
    Kind,
    Method,
    Plan,
    Step,
    TensorSpec,
)

FLOAT32 = 4
"""Bytes of a number in the arithmetic."""
FIXED_COPIES = 4
"""Tensors of a layer's size that every step holds beside the task vectors."""
OVERHEAD = 100_000_000
"""Bytes for everything that does not grow with the layers, code loaded late included."""


class Sources(NamedTuple):
    """The opened models. `layout` is the one whose tensors, and only those, the result has."""

    layout: Checkpoint
    base: Checkpoint | None
    experts: Sequence[Expert]
    merged: Checkpoint | None


class _Fate(NamedTuple):
    action: Action
    reason: str
    twin: str | None = None


def make_plan(
    recipe: Recipe,
    sources: Sources,
    *,
    shard_size: int,
    single_file: str | None = None,
    metadata: Mapping[str, str] | None = None,
    copied: Sequence[str] = (),
    threads: int = 1,
) -> Plan:
    """Decide what happens to each tensor and where its bytes go.

    Raises StructureError with all faults: missing, extra and misshapen tensors, formats that
    cannot be merged, a number of experts that the method does not take.
    """
    config = read_model_config(sources.layout)
    kinds = kinds_of(sources.layout, config)
    faults = [*_expert_count_faults(recipe, sources), *_quantised_faults(sources, config)]
    faults += _difference_faults(recipe, sources)
    if faults:
        raise StructureError(faults, remedy=_remedy(faults))
    steps = [
        _step(recipe, sources, name, kinds[name], _fate(recipe, sources, name, kinds[name]))
        for name in sources.layout.specs
    ]
    steps = _mark_sensitive(steps, recipe)
    steps, shards = lay_out(steps, shard_size, single_file, metadata or {})
    return Plan(
        digest=recipe.digest,
        steps=tuple(steps),
        shards=tuple(shards),
        disk=sum(shard.size for shard in shards),
        memory=_memory(recipe, steps, sources, threads),
        copied=tuple(copied),
        warnings=tuple(_dtype_warnings(sources)),
    )


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name is one of `patterns` (shell wildcards: * ? [...])."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fate(recipe: Recipe, sources: Sources, name: str, kind: Kind) -> _Fate:
    spec = sources.layout.specs[name]
    twin = sources.layout.ties.get(name)
    if twin is not None and _tied_everywhere(sources, name, twin):
        return _Fate("tie", f"shares its memory with {twin}", twin)
    if matches(name, recipe.ignore):
        return _Fate("carry", "ignored by the recipe")
    if kind == "buffer":
        return _Fate("carry", f"{dtypes.torch_name(spec.dtype)} values are not merged")
    if 0 in spec.shape:
        return _Fate("carry", "no entries")
    if recipe.merged is not None:
        calibrated = _calibrators_take(recipe, kind) and not matches(name, recipe.skip)
        return _Fate("merge", "calibrated") if calibrated else _Fate("carry", f"a {kind}")
    if sources.base and all(name in expert.untouched for expert in sources.experts):
        return _Fate("carry", "no expert changes it")
    if kind == "statistics":
        return _Fate("average", "running statistics are averaged")
    return _Fate("merge", f"a {kind}")


def _tied_everywhere(sources: Sources, name: str, twin: str) -> bool:
    """Whether every model that has both tensors shares their memory, as far as it tells."""
    models: list[Checkpoint | Expert] = [
        *sources.experts,
        *([sources.base] if sources.base else []),
    ]
    return all(name not in model.specs or model.ties.get(name) == twin for model in models)


def _step(recipe: Recipe, sources: Sources, name: str, kind: Kind, fate: _Fate) -> Step:
    spec = sources.layout.specs[name]
    if recipe.dtype is not None and spec.dtype in dtypes.FLOATS:
        spec = TensorSpec(name, spec.shape, recipe.dtype)
    calibrated = (
        fate.action == "merge"
        and _calibrators_take(recipe, kind)
        and not matches(name, recipe.skip)
    )
    return Step(spec, kind, fate.action, fate.reason, calibrated, False, fate.twin, 0, 0)


def _calibrators_take(recipe: Recipe, kind: Kind) -> bool:
    return any(kind in registry.calibrators.get(c.method).acts_on for c in recipe.calibrate)


def _mark_sensitive(steps: list[Step], recipe: Recipe) -> list[Step]:
    """Mark the layers of the sensitive list, by tensor name or by module name, never in part."""
    if not recipe.sensitive:
        return steps
    if not recipe.calibrate or recipe.gate == "off":
        raise ParameterError(
            "a list of sensitive layers without a gated calibration has no effect",
            remedy="add --calibrate and leave --gate on, or drop --sensitive",
        )
    names = {step.spec.name for step in steps if step.calibrated}
    layers = {name.removesuffix(".weight"): name for name in names}
    wanted = set()
    for entry in recipe.sensitive:
        found = entry if entry in names else layers.get(entry)
        if found is None:
            raise UnknownNameError(
                f"the sensitive layer {entry!r} is none of the calibrated ones",
                remedy=suggestion(entry, layers),
            )
        wanted.add(found)
    return [
        Step(**{**_fields(step), "sensitive": True}) if step.spec.name in wanted else step
        for step in steps
    ]


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__slots__}


def _expert_count_faults(recipe: Recipe, sources: Sources) -> list[str]:
    count = len(sources.experts)
    if recipe.method is None:
        return [] if count else ["no expert is given"]
    method: Method = registry.methods.get(recipe.method)
    least, most = method.experts
    faults = []
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        faults.append(f"{method.name} takes {wanted} experts, but {count} are given")
    weights = recipe.params.get("weights")
    if weights is not None and len(weights) != count:
        faults.append(f"{len(weights)} weights are given for {count} experts")
    if sources.base is None and not method.base_free:
        faults.append(f"{method.name} works on task vectors: it needs a base model")
    return faults


def _quantised_faults(sources: Sources, config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config.get("quantization_config"):
        faults.append(
            f"{sources.layout.source} is quantised (quantization_config in its config.json)"
        )
    for source, specs in _all_specs(sources):
        faults += [
            f"{name} of {source} is quantised to {dtypes.torch_name(spec.dtype)}"
            for name, spec in specs.items()
            if spec.dtype in dtypes.QUANTISED
        ]
    return faults


def _difference_faults(recipe: Recipe, sources: Sources) -> list[str]:
    layout = sources.layout
    faults = [fault for expert in sources.experts for fault in expert.faults]
    for source, specs in _all_specs(sources)[1:]:
        for name, spec in layout.specs.items():
            if matches(name, recipe.ignore) or _carried(spec):
                continue
            other = specs.get(name)
            if other is None and layout.ties.get(name) in specs:
                continue
            if other is None:
                faults.append(f"{name} is missing from {source}")
            elif other.shape != spec.shape:
                shapes = f"{list(other.shape)} in {source}, {list(spec.shape)} in {layout.source}"
                faults.append(f"{name} has shape {shapes}")
            elif other.dtype not in dtypes.FLOATS:
                faults.append(f"{name} is {dtypes.torch_name(other.dtype)} in {source}")
        faults += [
            f"{name} of {source} is not in {layout.source}"
            for name in specs
            if name not in layout.specs and not matches(name, recipe.ignore)
        ]
    return faults


def _carried(spec: TensorSpec) -> bool:
    """Tensors that are copied from the layout whatever the others have."""
    return spec.dtype not in dtypes.FLOATS or 0 in spec.shape


def _all_specs(sources: Sources) -> list[tuple[str, Mapping[str, TensorSpec]]]:
    """Each distinct model's name and tensors, the layout first."""
    models: list[Checkpoint | Expert] = [sources.layout]
    if sources.base is not None and sources.base is not sources.layout:
        models.append(sources.base)
    return [(model.source, model.specs) for model in [*models, *sources.experts]]


def _remedy(faults: Sequence[str]) -> str:
    if any("quantised" in fault for fault in faults):
        return "dequantise the model first (load it in transformers and save it in bfloat16)"
    if any(" is missing from " in fault or " is not in " in fault for fault in faults):
        return (
            "give models of one architecture; to leave tensors as the base has them, "
            "or to drop an expert's own head, name them: --ignore 'classifier.*'"
        )
    if any("shape" in fault for fault in faults):
        return "give models of one architecture, or name these tensors with --ignore"
    return "change the recipe as said above; `magmerge methods` lists what each method takes"


def _dtype_warnings(sources: Sources) -> list[str]:
    """Experts whose tensors have another precision than the layout's."""
    warnings = []
    for source, specs in _all_specs(sources)[1:]:
        pairs = sorted(
            {
                (dtypes.torch_name(spec.dtype), dtypes.torch_name(sources.layout.specs[name].dtype))
                for name, spec in specs.items()
                if name in sources.layout.specs
                and spec.dtype != sources.layout.specs[name].dtype
                and not _carried(sources.layout.specs[name])
            }
        )
        for own, wanted in pairs:
            warnings.append(
                f"{source} has {own} tensors where {sources.layout.source} has {wanted}: "
                f"computed in float32, written as {wanted} unless --dtype says otherwise"
            )
    return warnings


def _memory(recipe: Recipe, steps: Sequence[Step], sources: Sources, threads: int) -> int:
    """Peak bytes beyond the interpreter and torch: the largest layers, one for each thread.

    A layer needs the base, the task vectors, one being read, the result before and after its cast,
    and the workspace of the method or of the calibrators, whichever is larger.
    """
    count = len(sources.experts)
    items: list[Method | Calibrator] = [
        registry.calibrators.get(calibration.method) for calibration in recipe.calibrate
    ]
    if recipe.method is not None:
        items.append(registry.methods.get(recipe.method))
    workspace = max(item.workspace[0] * count + item.workspace[1] for item in items)
    layers = sorted(
        (math.prod(step.spec.shape) for step in steps if step.action != "carry"), reverse=True
    )
    carried = max((dtypes.nbytes(step.spec) for step in steps), default=0)
    peak = FLOAT32 * (count + FIXED_COPIES + workspace) * sum(layers[:threads])
    return max(peak, threads * carried) + OVERHEAD


def describe(plan: Plan) -> dict[str, Any]:
    """The plan for a program to read: everything but the headers' bytes."""
    return {
        "digest": plan.digest,
        "steps": [asdict(step) for step in plan.steps],
        "shards": [{"file": shard.file, "size": shard.size} for shard in plan.shards],
        "disk": plan.disk,
        "memory": plan.memory,
        "copied": list(plan.copied),
        "warnings": list(plan.warnings),
    }
