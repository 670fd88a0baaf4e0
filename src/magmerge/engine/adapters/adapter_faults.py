"""What speaks against a merge of adapters alone: options at odds, names without a place."""

from __future__ import annotations

import dataclasses

from magmerge.checkpoints.adapters.nouns import Adapter
from magmerge.checkpoints.adapters.translation import renamed
from magmerge.checkpoints.adapters.union import AdapterUnion
from magmerge.core.errors import Fault, ParameterError, printable, shortened
from magmerge.core.filters import matches
from magmerge.core.recipe import AdapterOutput, Recipe
from magmerge.core.types import Naming
from magmerge.core.validation import check_naming
from magmerge.engine.job import Job
from magmerge.engine.stages import Stages

TOLD = ("ss_", "modelspec.")
"""What header entries begin with that people read: trigger words, tags, a title, a thumbnail."""


def faults_of(recipe: Recipe, stages: Stages, union: AdapterUnion) -> list[Fault]:
    """What of the adapters does not fit each other; errors for options that mean nothing for them.

    ParameterError for a rank or a calibrator that low-rank task vectors cannot have; AdapterError,
    with all of them, for modules that the output's naming has no place for.
    """
    output = recipe.output
    assert isinstance(output, AdapterOutput)
    _check_exact(output, stages)
    _check_calibrators(stages)
    naming = check_naming(output.naming or union.naming)
    for adapter in union.adapters:
        renamed(_kept(adapter, recipe), naming)
    faults = [
        Fault(
            f"{name} is a bias or norm that is added to, for which {naming} has no place",
            f"merge into a model with --base (base=), or leave it out: --ignore '{name}' (ignore=)",
        )
        for name in union.added
        if not matches(name, recipe.ignore) and not has_place(name, union, naming)
    ]
    for name in union.replaced:
        owners = [adapter for adapter in union.adapters if name in adapter.whole]
        shapes = [(list(adapter.whole[name].shape), adapter.source) for adapter in owners]
        if any(shape != shapes[0][0] for shape, _ in shapes) and not matches(name, recipe.ignore):
            told = ", ".join(f"{shape} in {source}" for shape, source in shapes)
            faults.append(
                Fault(
                    f"{name}, which the adapters replace as a whole, has shape {told}",
                    f"drop it with --ignore '{name}' (ignore=)",
                )
            )
    return faults


def has_place(name: str, union: AdapterUnion, naming: Naming) -> bool:
    """Whether a file of this naming can add to this bias or norm."""
    if naming == "peft":
        return name.endswith(".bias") and name.removesuffix(".bias") in union.modules
    return naming not in ("diffusers", "diffusers_old")


def pipeline_faults(job: Job) -> list[Fault]:
    """PEFT's folder is an adapter on one model, and a pipeline is several."""
    parts = getattr(job.models.layout, "parts", {})
    if not parts or job.adapter_output.naming not in (None, "peft"):
        return []
    return [
        Fault(
            f"an adapter in PEFT's names is on one model, and {job.models.layout.source} is a "
            f"pipeline of {', '.join(parts)}",
            "write one file in diffusers' names: --format diffusers (naming=), and an output that "
            f"ends in .safetensors; or give one part's folder, such as BASE/{next(iter(parts))}",
        )
    ]


def notes_of(recipe: Recipe, union: AdapterUnion) -> tuple[str, ...]:
    """What a reader should know: replaced tensors that several have, and what speaks against one
    base of all.
    """
    notes = [
        f"{printable(name)} is replaced as a whole by {len(union.owners(name))} adapters: the "
        "result has their mean, whatever the method"
        for name in union.replaced
        if len(union.owners(name)) > 1 and not matches(name, recipe.ignore)
    ]
    if recipe.output.kind == "adapter" and recipe.output.naming is None and union.spelling_note:
        notes.append(union.spelling_note)
    return (*notes, *_dropped_entries(union), *_strangers(union))


def _dropped_entries(union: AdapterUnion) -> list[str]:
    """Header entries (trigger words, tags) of further adapters: the result has the first's."""
    first = union.adapters[0].source
    notes = []
    for source, entries in union.dropped_entries.items():
        own = [key for key in entries if key.startswith(TOLD)]
        if own:
            notes.append(
                f"the result keeps the header entries of {first}, and not these of {source}: "
                f"{shortened(own)}"
            )
    return notes


def _check_exact(output: AdapterOutput, stages: Stages) -> None:
    """Rank "exact" is that of the inputs together, which only combinations of them keep to."""
    if output.rank == "exact" and stages.method is not None and not stages.always_in_factors:
        raise ParameterError(
            f"{stages.method.name} does not keep to the ranks of its inputs, so no low rank is "
            "exact",
            remedy="give a number (--rank 32), or --rank auto --energy 0.99",
        )


def _check_calibrators(stages: Stages) -> None:
    for item, _ in stages.treatment.calibrators:
        if item.needs == "inputs":
            raise ParameterError(
                f"{item.name} looks at what layers do with samples; adapters alone are no model",
                remedy="name the model they were trained on with --base (base=), or take wsc",
            )
        if not item.rotates or item.returns != "factor":
            raise ParameterError(
                f"{item.name} is not defined for low-rank task vectors",
                remedy="take wsc, or merge into the base with --base (base=)",
            )


def _strangers(union: AdapterUnion) -> tuple[str, ...]:
    notes = []
    for place, first in enumerate(union.adapters):
        for second in union.adapters[place + 1 :]:
            if first.modules and second.modules and not set(first.modules) & set(second.modules):
                notes.append(
                    f"{first.source} and {second.source} adapt no module in common: both are kept "
                    "as they are, but are they for one base?"
                )
    bases = {
        str(adapter.config["base_model_name_or_path"])
        for adapter in union.adapters
        if adapter.config.get("base_model_name_or_path")
    }
    if len(bases) > 1:
        named = ", ".join(printable(base) for base in sorted(bases))
        notes.append(f"the adapters name different base models: {named}")
    return tuple(notes)


def _kept(adapter: Adapter, recipe: Recipe) -> Adapter:
    """The adapter without the replaced tensors that a recipe ignores."""
    kept = {n: own for n, own in adapter.replaced.items() if not matches(n, recipe.ignore)}
    added = {n: own for n, own in adapter.added.items() if not matches(n, recipe.ignore)}
    return dataclasses.replace(adapter, replaced=kept, added=added)
