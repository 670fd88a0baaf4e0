"""What does not fit between the models of a recipe: all of it, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from magmerge import dtypes, registry
from magmerge.adapters.expert import OWN_BASE
from magmerge.errors import Fault, StructureError
from magmerge.filters import values_of
from magmerge.models import Checkpoint, Expert, Sources
from magmerge.quantisation import signs
from magmerge.recipe import Recipe
from magmerge.types import TensorSpec
from magmerge.varying import Varying

ARCHITECTURE = (
    "give models of one architecture; to leave these tensors as the base has them, or to drop an "
    "expert's own ones, name them with --ignore 'PATTERN' (ignore=), for example 'classifier.*'"
)
ONCE = (
    "give each model once; for more influence of one expert set its weight: --set 'weights=[2, 1]'"
)
PATTERNS = "patterns match whole names: '*.bias', 'lm_head.*'; `magmerge plan` lists the names"
FILTERS = (
    "a filter is a part of a name, a pattern with * for a whole name, or a part of a diffusion "
    "model's single file (unet, vae, ...); `magmerge plan` lists the names"
)


def check_structure(recipe: Recipe, sources: Sources, config: Mapping[str, Any]) -> None:
    """StructureError with all faults: quantised models, else missing, extra and misshapen tensors,
    formats that cannot be merged, models given twice, a number of experts that the method does not
    take.
    """
    check_quantised(sources, config)
    faults = _expert_count_faults(recipe, sources)
    faults += _repeated_faults(sources)
    faults += _difference_faults(recipe, sources)
    faults += _pattern_faults(recipe, sources)
    varying = Varying(recipe, sources.layout.specs)
    faults += [Fault(text, FILTERS) for text in varying.unused()]
    faults += [
        Fault(text, "give both names the same value") for text in varying.torn(sources.layout.ties)
    ]
    faults += _name_faults(sources)
    if faults:
        raise StructureError(faults)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name is one of `patterns` (shell wildcards: * ? [...])."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def dtype_warnings(sources: Sources) -> list[str]:
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


def reading_notes(sources: Sources) -> list[str]:
    """What is to be known of how the models were read, once each."""
    models = [sources.layout, sources.base, *sources.experts]
    return list(dict.fromkeys(note for one in models if one is not None for note in one.notes))


def tied_everywhere(sources: Sources, name: str) -> bool:
    """Whether every model that has this tensor of the layout ties it to the same other one."""
    models: list[Checkpoint | Expert] = [
        *sources.experts,
        *([sources.base] if sources.base else []),
    ]
    twin = sources.layout.ties.get(name)
    return twin is not None and all(
        name not in model.specs or model.ties.get(name) == twin for model in models
    )


def _expert_count_faults(recipe: Recipe, sources: Sources) -> list[Fault]:
    count = len(sources.experts)
    if recipe.method is None:
        told = Fault("no expert is given", "name the experts with --expert (experts=)")
        return [] if count else [told]
    method = registry.methods.get(recipe.method)
    least, most = method.experts
    faults = []
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        noun = "expert" if least == 1 else "experts"
        given = f"{count} {'is' if count == 1 else 'are'} given"
        faults.append(
            Fault(
                f"{method.name} takes {wanted} {noun}, but {given}",
                "give as many experts as the method takes, or choose another method",
            )
        )
    weighting = recipe.params.get("weights")
    for weights in values_of(weighting):
        if weights is not None and len(weights) != count:
            faults.append(
                Fault(
                    f"{len(weights)} weights are given for {count} experts",
                    "give one weight for each expert: --set 'weights=[0.5, 0.5]'",
                )
            )
    if sources.base is None and not method.base_free:
        faults.append(
            Fault(
                f"{method.name} works on task vectors: it needs a base model",
                "name the base with --base (base=); average and slerp do without",
            )
        )
    return faults


def check_quantised(sources: Sources, config: Mapping[str, Any]) -> None:
    """StructureError where a model is quantised, before the faults that follow from that."""
    faults = []
    if config.get("quantization_config"):
        faults.append(
            f"{sources.layout.source} is quantised (quantization_config in its config.json)"
        )
    models = [sources.layout, sources.base, *(expert.whole for expert in sources.experts)]
    for model in dict.fromkeys(one for one in models if one is not None):
        found = signs(model.specs)
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            faults.append(
                f"{model.source} is quantised: {found[0].tensor} ({found[0].reason}){more}"
            )
    if faults:
        raise StructureError(
            faults,
            remedy="give the model that it was quantised from, or load it with the program that "
            "quantised it and save it in bfloat16, float16 or float32",
        )


def _repeated_faults(sources: Sources) -> list[Fault]:
    """Models given twice, as far as their files tell; equal contents are found by the merge."""
    seen: dict[tuple[Path, ...], str] = {}
    faults = []
    models: list[Checkpoint | Expert] = [
        *([sources.base] if sources.base else []),
        *sources.experts,
    ]
    for model in models:
        files = tuple(file.resolve() for file in model.files)
        if files and files in seen:
            faults.append(Fault(f"{model.source} is given twice: it is also {seen[files]}", ONCE))
        seen.setdefault(files, "the base" if model is sources.base else "an expert")
    return faults


def _difference_faults(recipe: Recipe, sources: Sources) -> list[Fault]:
    layout = sources.layout
    faults = [fault for expert in sources.experts for fault in expert.faults]
    adapters = {one.source for one in sources.experts if one.whole is None}
    for source, specs in _all_specs(sources)[1:]:
        remedy = OWN_BASE if source in adapters else ARCHITECTURE
        for name, spec in layout.specs.items():
            if matches(name, recipe.ignore) or _carried(spec):
                continue
            other = specs.get(name)
            if other is None and layout.ties.get(name) in specs and tied_everywhere(sources, name):
                continue
            if other is None:
                faults.append(Fault(f"{name} is missing from {source}", remedy))
            elif other.shape != spec.shape:
                shapes = f"{list(other.shape)} in {source}, {list(spec.shape)} in {layout.source}"
                faults.append(Fault(f"{name} has shape {shapes}", remedy))
            elif other.dtype not in dtypes.FLOATS:
                text = f"{name} is {dtypes.torch_name(other.dtype)} in {source}"
                faults.append(Fault(text, remedy))
        faults += [
            Fault(f"{name} of {source} is not in {layout.source}", remedy)
            for name, spec in specs.items()
            if name not in layout.specs and not _carried(spec) and not matches(name, recipe.ignore)
        ]
    return faults


def _pattern_faults(recipe: Recipe, sources: Sources) -> list[Fault]:
    """Patterns that name no tensor, which are most likely misspelt."""
    names = [name for _, specs in _all_specs(sources) for name in specs]
    faults = [
        Fault(f"the pattern {pattern!r} matches no tensor", PATTERNS)
        for pattern in (*recipe.ignore, *recipe.skip)
        if not any(matches(name, [pattern]) for name in names)
    ]
    return faults + [
        Fault(
            f"{twin} is ignored or not, but {name} shares its memory and is not or is",
            "ignore both names, or neither",
        )
        for name, twin in sources.layout.ties.items()
        if matches(name, recipe.ignore) != matches(twin, recipe.ignore)
    ]


def _name_faults(sources: Sources) -> list[Fault]:
    """Names that a safetensors header cannot hold."""
    return [
        Fault(f"{name!r} cannot be a tensor's name", "rename that tensor")
        for name in sources.layout.specs
        if name == "__metadata__" or name != name.encode(errors="replace").decode()
    ]


def _carried(spec: TensorSpec) -> bool:
    """Tensors that are copied from the layout whatever the others have."""
    return spec.dtype not in dtypes.FLOATS or 0 in spec.shape


def _all_specs(sources: Sources) -> list[tuple[str, Mapping[str, TensorSpec]]]:
    """Each distinct model's name and tensors, the layout first."""
    models: list[Checkpoint | Expert] = [sources.layout]
    if sources.base is not None and sources.base is not sources.layout:
        models.append(sources.base)
    return [(model.source, model.specs) for model in [*models, *sources.experts]]
