"""Adapters that are merged without a base: opened, named alike, as experts on their union."""

from __future__ import annotations

from collections.abc import Mapping

from magmerge.adapters.opening import open_adapter
from magmerge.adapters.renaming import common_naming
from magmerge.adapters.union import AdapterTaskVectors, AdapterUnion
from magmerge.checkpoints.opening import Model, adapts
from magmerge.errors import AdapterError
from magmerge.models import Sources


def adapter_sources(models: Mapping[str, Model]) -> Sources | None:
    """The experts if all are adapters, None if none is; AdapterError where only some are."""
    found = {name: model for name, model in models.items() if adapts(model)}
    if not found:
        return None
    for name in models:
        if name not in found:
            raise AdapterError(
                f"{name} is a whole model, and {next(iter(found))} an adapter",
                remedy="name the model that the adapters were trained on with --base (base=)",
            )
    opened = [open_adapter(str(model)) for model in found.values()]
    named = common_naming(opened)
    union = AdapterUnion(named, opened[0].naming)
    experts = [
        AdapterTaskVectors(name, adapter, union) for name, adapter in zip(found, named, strict=True)
    ]
    return Sources(union, union, experts, None)
