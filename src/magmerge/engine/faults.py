"""What does not fit between the models of a recipe: all of it, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from magmerge.checkpoints.kinds import HEAD_PARENTS, HEADS
from magmerge.core import dtypes, registry
from magmerge.core.errors import CheckpointError, Fault, StructureError
from magmerge.core.filters import matches, values_of
from magmerge.core.lazy import load
from magmerge.core.models import OWN_BASE, Checkpoint, Expert
from magmerge.core.recipe import Recipe
from magmerge.core.traits import Parameter
from magmerge.core.types import TensorSpec
from magmerge.engine.job import Job, Models
from magmerge.engine.variation import Varying

ARCHITECTURE = (
    "give models of one architecture, tuned from one base; where an expert only has other names "
    "for its tensors, map these with --rename 'OLD=NEW' (rename=)"
)
DISPENSABLE = (
    "to leave it as the base has it, or to drop an expert's own, name it with --ignore '{}' "
    "(ignore=)"
)
PARTS = HEADS | HEAD_PARENTS | {"pooler", "fc", "_fc", "nsp_classifier", "mlm", "predictions"}
"""Parts of names of what is a task's own, and no loss where a merge leaves it out."""
TABLES = frozenset({"inv_freq", "masked_bias", "position_ids", "relative_position_index"})
"""Last parts of names of what a model makes anew when it is built."""
POSITIONS = (
    "resize it to the base's number of positions and save the model: "
    "torch.nn.functional.interpolate(table.T[None], size=positions, mode='linear')[0].T; that of "
    "an image model along both sides of its grid"
)
HEADS_APART = (
    "give models that are all tied, or all untied (tie_word_embeddings in config.json); or "
    "--ignore 'lm_head.*' (ignore=) where the head is no part of what the experts learnt"
)
WIDER = ("conv_in.weight", "input_blocks.0.0.weight", "x_embedder.weight", "img_in.weight")
"""Layers of image models that may take further channels, as those for inpainting do."""
MORE_CHANNELS = (
    "give the model with the most input channels as the base: what others lack stays its"
)
FLOATING = "save that model in bfloat16, float16 or float32"
NO_BIAS = (
    "give a base whose layers have biases (zeros, if it had none), or merge without these of the "
    "adapter: --ignore '*.bias' (ignore=)"
)
"""Where an adapter adds to a bias that its base has not."""
ONCE = (
    "give each model once; for more influence of one expert set its weight: --set 'weights=[2, 1]'"
)
ITSELF = "give the fine-tuned model, and the base that it was tuned from"
"""Where one model is given as both."""
PATTERNS = "patterns match whole names: '*.bias', 'lm_head.*'; `magmerge plan` lists the names"
FILTERS = (
    "a filter is a part of a name, a pattern with * for a whole name, or a part of a diffusion "
    "model's single file (unet, vae, ...); `magmerge plan` lists the names"
)


def check_structure(job: Job, more: Sequence[Fault] = ()) -> None:
    """StructureError with all faults: missing, extra and misshapen tensors,
    formats that cannot be merged, models given twice, a number of experts that the method does not
    take. Where one model is only written in another form it is asked for its names alone.
    """
    recipe, models = job.recipe, job.models
    alone = job.takes and models.base is None
    faults = [*models.faults]
    if alone:
        _check_names(models.layout)
    else:
        faults += _repeated_faults(models)
        faults += _difference_faults(recipe, models)
    faults += _expert_count_faults(job)
    method = job.stages.method
    if not faults and method is not None and not registry.methods.is_builtin(method.name):
        trial = load("magmerge.engine.method_trial:cut_faults")
        faults += trial(job.stages, len(models.experts))
    faults += _pattern_faults(recipe, models)
    faults += more
    varying = Varying(recipe, models.layout.specs)
    faults += [Fault(text, FILTERS) for text in varying.unused()]
    faults += [
        Fault(text, "give both names the same value") for text in varying.torn(models.layout.ties)
    ]
    faults += _name_faults(models)
    if faults:
        raise StructureError(faults)


def dtype_warnings(models: Models) -> list[str]:
    """Experts whose tensors have another precision than the layout's."""
    warnings = []
    for source, specs in _all_specs(models)[1:]:
        pairs = sorted(
            {
                (dtypes.torch_name(spec.dtype), dtypes.torch_name(models.layout.specs[name].dtype))
                for name, spec in specs.items()
                if name in models.layout.specs
                and spec.dtype != models.layout.specs[name].dtype
                and not _carried(models.layout.specs[name])
            }
        )
        for own, stored in pairs:
            warnings.append(
                f"{source} has {own} tensors where {models.layout.source} has {stored}: "
                f"computed in float32, written as {stored} unless --dtype says otherwise"
            )
    return warnings


def reading_notes(models: Models) -> list[str]:
    """What is to be known of how the models were read, once each."""
    opened = [models.layout, models.base, *models.experts]
    notes = [note for model in opened if model is not None for note in model.notes]
    return list(dict.fromkeys((*notes, *models.notes)))


def tied_everywhere(models: Models, name: str) -> bool:
    """Whether every model that has this tensor of the layout ties it to the same other one."""
    others: list[Checkpoint | Expert] = [
        *models.experts,
        *([models.base] if models.base else []),
    ]
    twin = models.layout.ties.get(name)
    return twin is not None and all(
        name not in model.specs or model.ties.get(name) == twin for model in others
    )


def _expert_count_faults(job: Job) -> list[Fault]:
    recipe, models, count = job.recipe, job.models, len(job.models.experts)
    if models.made_of:
        return []
    if job.takes and count != 1:
        remedy = "name a method that merges them: --method (method=)"
        return [Fault(f"nothing is merged, and {count} models are given instead of one", remedy)]
    if recipe.method is None:
        told = Fault("no expert is given", "name the experts with --expert (experts=)")
        return [] if count else [told]
    method = registry.methods.get(recipe.method)
    least, most = method.experts
    faults = []
    few = count < least or (most is not None and count > most)
    # How many have a vote in each slice is told with the slices.
    if few and not models.votes:
        bounds = f"exactly {least}" if least == most else f"at least {least}"
        noun = "expert" if least == 1 else "experts"
        number = f"{count} {'is' if count == 1 else 'are'} given"
        faults.append(
            Fault(
                f"{method.name} takes {bounds} {noun}, but {number}",
                "give as many experts as the method takes, or choose another method",
            )
        )
    for parameter in method.parameters:
        if parameter.per_expert:
            faults += _list_faults(parameter, recipe.params.get(parameter.name), count)
    if models.base is None and models.union is None and not method.base_free:
        faults.append(
            Fault(
                f"{method.name} works on task vectors: it needs a base model",
                "name the base with --base (base=); average and slerp do without",
            )
        )
    return faults


def _list_faults(parameter: Parameter, value: object, experts: int) -> list[Fault]:
    """Lists with a value for each expert that have not as many."""
    name = parameter.name
    plural = name if name.endswith("s") else f"values of {name}"
    remedy = f"give one for each expert: --set '{name}=[{', '.join(['0.5'] * experts)}]'"
    if parameter.default is not None:
        remedy += f"; points through the depth are --set '{name}={{gradient: [0.1, 0.9]}}'"
    return [
        Fault(f"{len(own)} {plural} are given for {experts} experts", remedy)
        for own in values_of(value)
        if isinstance(own, list | tuple) and len(own) != experts
    ]


def _repeated_faults(models: Models) -> list[Fault]:
    """Models given twice, as far as their files tell; equal contents are found by the merge."""
    seen: dict[tuple[str, ...], str] = {}
    faults: list[Fault] = []
    if models.votes:
        # Of one model they may be other blocks.
        return faults
    opened: list[Checkpoint | Expert] = [
        *([models.base] if models.base else []),
        *models.experts,
    ]
    for model in opened:
        files = tuple(os.path.realpath(file) for file in model.files)
        if files and files in seen:
            remedy = ITSELF if seen[files] == "the base" else ONCE
            faults.append(Fault(f"{model.source} is given twice: it is also {seen[files]}", remedy))
        seen.setdefault(files, "the base" if model is models.base else "an expert")
    return faults


def _difference_faults(recipe: Recipe, models: Models) -> list[Fault]:
    layout = models.layout
    faults = [fault for expert in models.experts for fault in expert.faults]
    loras = {expert.source for expert in models.experts if expert.whole is None}
    for source, specs in _all_specs(models)[1:]:
        lora = source in loras
        for name, spec in layout.specs.items():
            if matches(name, recipe.ignore) or _carried(spec) or name in models.unmerged:
                continue
            other = specs.get(name)
            if other is None and layout.ties.get(name) in specs and tied_everywhere(models, name):
                continue
            if other is None:
                faults.append(Fault(f"{name} is missing from {source}", _remedy(spec, lora)))
            elif other.shape != spec.shape:
                shapes = f"{list(other.shape)} in {source}, {list(spec.shape)} in {layout.source}"
                faults.append(Fault(f"{name} has shape {shapes}", _remedy(spec, lora, other)))
            elif other.dtype not in dtypes.FLOATS:
                text = f"{name} is {dtypes.torch_name(other.dtype)} in {source}"
                faults.append(Fault(text, FLOATING))
        faults += [
            Fault(f"{name} of {source} is not in {layout.source}", _remedy(spec, lora))
            for name, spec in specs.items()
            if name not in layout.specs and not _carried(spec) and not matches(name, recipe.ignore)
        ]
    return faults


def _remedy(spec: TensorSpec, lora: bool, other: TensorSpec | None = None) -> str:
    """What helps where a tensor is missing, one too many, or has the shape of `other`."""
    if lora:
        return NO_BIAS if other is None and spec.name.endswith(".bias") else OWN_BASE
    parts = spec.name.split(".")
    if parts[-1] in TABLES:
        return DISPENSABLE.format(f"*.{parts[-1]}")
    if other is not None:
        if spec.name.endswith(WIDER) and other.shape[1:2] > spec.shape[1:2]:
            return MORE_CHANNELS
        table = "pos" in spec.name and spec.shape[-1:] == other.shape[-1:]
        return POSITIONS if table else ARCHITECTURE
    if parts[-2:-1] == ["lm_head"]:
        return HEADS_APART
    place = next((place for place, part in enumerate(parts) if part in PARTS), None)
    if place is None:
        return ARCHITECTURE
    return DISPENSABLE.format(".".join((*parts[: place + 1], "*")))


def _pattern_faults(recipe: Recipe, models: Models) -> list[Fault]:
    """Patterns that name no tensor, which are most likely misspelt."""
    names = [name for _, specs in _all_specs(models) for name in specs]
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
        for name, twin in models.layout.ties.items()
        if matches(name, recipe.ignore) != matches(twin, recipe.ignore)
    ]


def _name_faults(models: Models) -> list[Fault]:
    """Names that a safetensors header cannot hold."""
    return [
        Fault(f"{name!r} cannot be a tensor's name", "rename that tensor")
        for name in models.layout.specs
        if _is_unwritable(name)
    ]


def _check_names(model: Checkpoint) -> None:
    """CheckpointError for a name of a model's own that a safetensors header cannot hold."""
    for name in model.specs:
        if _is_unwritable(name):
            raise CheckpointError(
                "this cannot be a tensor's name in safetensors",
                source=model.source,
                tensor=name,
                remedy="rename that tensor",
            )


def _is_unwritable(name: str) -> bool:
    return name == "__metadata__" or name != name.encode(errors="replace").decode()


def _carried(spec: TensorSpec) -> bool:
    """Tensors that are copied from the layout whatever the others have."""
    return spec.dtype not in dtypes.FLOATS or 0 in spec.shape


def _all_specs(models: Models) -> list[tuple[str, Mapping[str, TensorSpec]]]:
    """Each distinct model's name and tensors, the layout first."""
    opened: list[Checkpoint | Expert] = [models.layout]
    if models.base is not None and models.base is not models.layout:
        opened.append(models.base)
    return [(model.source, model.specs) for model in [*opened, *models.experts]]
