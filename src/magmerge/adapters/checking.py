"""What speaks against a merge of adapters: equal ones, strangers, options at odds."""

from __future__ import annotations

from magmerge import registry
from magmerge.adapters.merging import always_in_factors
from magmerge.adapters.nouns import Adapter
from magmerge.adapters.ranks import check_naming
from magmerge.adapters.renaming import renamed
from magmerge.adapters.union import AdapterTaskVectors, AdapterUnion, union_of
from magmerge.errors import ParameterError, StructureError, printable
from magmerge.faults import matches
from magmerge.models import Sources
from magmerge.recipe import AdapterOutput, Recipe, keywords


def check_exact(recipe: Recipe, output: AdapterOutput) -> None:
    """Rank "exact" is that of the inputs together, which only combinations of them keep to."""
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    if output.rank != "exact" or method is None:
        return
    if not always_in_factors(method, keywords(method, recipe.params)):
        raise ParameterError(
            f"{method.name} does not keep to the ranks of its inputs, so no low rank is exact",
            remedy="give a number (--rank 32), or --rank auto --energy 0.99",
        )


def check_calibrators(recipe: Recipe) -> None:
    for calibration in recipe.calibrate:
        item = registry.calibrators.get(calibration.method)
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


def check_distinct(sources: Sources) -> None:
    """StructureError for adapters that change nothing, and for two that are the same."""
    experts = [one for one in sources.experts if isinstance(one, AdapterTaskVectors)]
    faults = [
        f"{one.source} changes nothing: in every module a factor is zero"
        for one in experts
        if one.changes_nothing()
    ]
    if faults:
        raise StructureError(faults, remedy="drop it: it was never trained")
    faults = [
        f"{first.source} and {second.source} are the same adapter"
        for place, first in enumerate(experts)
        for second in experts[place + 1 :]
        if first.equals(second)
    ]
    if faults:
        raise StructureError(
            faults,
            remedy="drop one; for more influence of one set its weight: --set 'weights=[2, 1]'",
        )


def strangers(union: AdapterUnion) -> tuple[str, ...]:
    """What speaks against the adapters having one base."""
    notes = []
    for place, first in enumerate(union.adapters):
        for second in union.adapters[place + 1 :]:
            if first.modules and second.modules and not set(first.modules) & set(second.modules):
                notes.append(
                    f"{first.source} and {second.source} adapt no module in common: both are kept "
                    "as they are, but are they for one base?"
                )
    bases = {
        str(one.config["base_model_name_or_path"])
        for one in union.adapters
        if one.config.get("base_model_name_or_path")
    }
    if len(bases) > 1:
        named = ", ".join(printable(base) for base in sorted(bases))
        notes.append(f"the adapters name different base models: {named}")
    return tuple(notes)


def check_names(recipe: Recipe, sources: Sources) -> None:
    """AdapterError, with all of them, for modules that the output's naming has no place for."""
    union = union_of(sources)
    asked = None if recipe.adapter is None else recipe.adapter.naming
    naming = check_naming(asked or union.naming)
    for adapter in union.adapters:
        renamed(_Kept(adapter, recipe), naming)


class _Kept:
    """An adapter without the replaced tensors that a recipe ignores."""

    def __init__(self, adapter: Adapter, recipe: Recipe) -> None:
        self.source, self.files, self.naming = adapter.source, adapter.files, adapter.naming
        self.modules, self.metadata, self.config = adapter.modules, adapter.metadata, adapter.config
        self.notes = adapter.notes
        self.whole = {n: s for n, s in adapter.whole.items() if not matches(n, recipe.ignore)}
        self.read, self.read_whole = adapter.read, adapter.read_whole
        self.read_whole_part = adapter.read_whole_part
