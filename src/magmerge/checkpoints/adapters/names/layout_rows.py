"""Modules under diffusers' names by the tables of image and video models: rows of the authors'."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from magmerge.checkpoints.adapters.nouns import ModuleSpec
from magmerge.checkpoints.adapters.rows import Composition, Rows
from magmerge.checkpoints.names.layouts import Slots, tables
from magmerge.core.types import TensorSpec

APART = ("sd3", "wan")
"""Tables that no code beside them knows: Flux' has its own for adapters."""


def module_slots(flat_names: Collection[str]) -> dict[str, Slots]:
    """What modules, whose names have _ for dots, hold of the model that most of them are of; empty
    where that is Flux or no model of a table.
    """
    readings = {name: table.modules(flat_names) for name, table in tables().items()}
    best = max(readings, key=lambda name: len(readings[name]))
    return readings[best] if best in APART else {}


def tensor_slots(specs: Mapping[str, TensorSpec]) -> dict[str, Slots]:
    """The same of a model's tensors."""
    readings = {name: table.read(specs) for name, table in tables().items()}
    best = max(readings, key=lambda name: len(readings[name]))
    return readings[best] if best in APART else {}


def add_rows(
    modules: Mapping[str, ModuleSpec], slots: Mapping[str, Slots], composition: Composition
) -> None:
    """Add to `composition` the transformer's modules of diffusers that these modules hold."""
    halves: dict[str, dict[str, Rows]] = {}
    for name, own in slots.items():
        rows, shares = modules[name].shape[0], sum(slot.share for slot in own)
        if rows % shares:
            composition.faults.append(f"{name}: its {rows} rows are not {shares} equal parts")
            continue
        start = 0
        for part, share in own:
            stop = start + rows // shares * share
            theirs, _, half = part.partition("@")
            target = f"transformer.{theirs}"
            if half:
                halves.setdefault(target, {})[half] = Rows(name, start, stop)
            else:
                composition.add(target, (Rows(name, start, stop),))
            start = stop
    for target, pair in halves.items():
        composition.add(target, [pair[half] for half in sorted(pair)])
