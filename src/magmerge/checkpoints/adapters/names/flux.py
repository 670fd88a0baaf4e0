"""Adapters of Flux in its authors' names and in diffusers': fused projections are taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from magmerge.checkpoints.adapters.nouns import ModuleSpec
from magmerge.checkpoints.adapters.rows import Composition, Rows, whole
from magmerge.checkpoints.names.layouts import tables

_SWAPPED = "final_layer_adaLN_modulation_1"
"""Its rows are shift and scale in the authors' model, scale and shift in diffusers'."""
_WIDTHS = (1, 1, 1, 4)
"""Rows of q, k, v and the MLP in linear1, in multiples of the columns."""
_OWN_BLOCK = re.compile(r"(double|single)_blocks_(0|[1-9]\d{0,3})_")
_THEIR_BLOCK = re.compile(r"(transformer|single_transformer)_blocks\.(0|[1-9]\d{0,3})\.")


@cache
def _to_diffusers() -> dict[str, tuple[str, ...]]:
    """diffusers' modules for each of the authors', whose names have _ for dots: several for a fused
    projection. # is a block's number.
    """
    return {
        row.own.replace(".", "_"): tuple(
            dict.fromkeys(slot.part.partition("@")[0] for slot in row.slots)
        )
        for row in tables()["flux"].rows
        if not row.exact
    }


@cache
def _slots() -> dict[str, tuple[str, int]]:
    """The authors' module, and which place in it, for each of diffusers'."""
    return {
        part: (own, position)
        for own, parts in _to_diffusers().items()
        for position, part in enumerate(parts)
    }


def is_own(flat_name: str) -> bool:
    """Whether a flat name is of Flux' own kind, inside a block or the last layer."""
    return _OWN_BLOCK.match(flat_name) is not None or flat_name.startswith("final_layer_")


def split(
    name: str, flat_name: str, spec: ModuleSpec, composition: Composition, prefix: str
) -> bool:
    """Add to `composition` what diffusers has for the module `name`, whose name in Flux' own model,
    with _ for dots, is `flat_name`; False if there is none such. diffusers' names begin with
    `prefix`.
    """
    match = _OWN_BLOCK.match(flat_name)
    number = match[2] if match else ""
    pattern = f"{match[1]}_blocks_#_{flat_name[match.end() :]}" if match else flat_name
    if pattern not in _to_diffusers():
        return False
    targets = [f"{prefix}{part.replace('#', number)}" for part in _to_diffusers()[pattern]]
    if len(targets) > 1:
        _take_apart(name, targets, spec, composition)
    elif pattern == _SWAPPED:
        _swap(name, targets[0], spec, composition)
    else:
        composition.add(targets[0], whole(name, spec))
    return True


def _take_apart(name: str, targets: list[str], spec: ModuleSpec, composition: Composition) -> None:
    widths = _WIDTHS[: len(targets)]
    if len(spec.shape) != 2 or spec.shape[0] != sum(widths) * spec.shape[1]:
        composition.faults.append(
            f"{name}: its task vector is {list(spec.shape)}, and Flux' has {sum(widths)} rows for "
            "each column"
        )
        return
    start = 0
    for target, width in zip(targets, widths, strict=True):
        stop = start + width * spec.shape[1]
        composition.add(target, (Rows(name, start, stop),))
        start = stop


def _swap(name: str, target: str, spec: ModuleSpec, composition: Composition) -> None:
    rows = spec.shape[0]
    if rows % 2:
        composition.faults.append(f"{name}: its {rows} rows are no scale and shift")
    else:
        composition.add(target, (Rows(name, rows // 2, rows), Rows(name, 0, rows // 2)))


def join(
    modules: Mapping[str, tuple[str, ModuleSpec]], composition: Composition, prefix: str
) -> None:
    """Add to `composition` the modules of Flux' own model for those of diffusers'.

    `modules`: by diffusers' name, the name in hand and its header. The new names have _ for dots
    and begin with `prefix`.
    """
    fused: dict[str, dict[int, tuple[str, ModuleSpec]]] = {}
    for theirs, (name, spec) in modules.items():
        match = _THEIR_BLOCK.match(theirs)
        number = match[2] if match else ""
        pattern = f"{match[1]}_blocks.#.{theirs[match.end() :]}" if match else theirs
        own, position = _slots().get(pattern, ("", 0))
        target = f"{prefix}{own.replace('#', number)}"
        if not own:
            composition.rename(name, None, spec, "Flux has no such module")
        elif len(_to_diffusers()[own]) > 1:
            fused.setdefault(target, {})[position] = (name, spec)
        elif own == _SWAPPED:
            _swap(name, target, spec, composition)
        else:
            composition.rename(name, target, spec)
    for target, parts in fused.items():
        _put_together(target, parts, composition)


def _put_together(
    target: str, parts: Mapping[int, tuple[str, ModuleSpec]], composition: Composition
) -> None:
    first, example = next(iter(parts.values()))
    columns = example.shape[1]
    widths = _WIDTHS if target.endswith("linear1") else _WIDTHS[:3]
    rows: list[Rows] = []
    for position, width in enumerate(widths):
        name, spec = parts.get(position, (None, None))
        if spec is not None and spec.shape != (width * columns, columns):
            composition.faults.append(
                f"{name}: its task vector is {list(spec.shape)}, which does not go with {first} "
                f"into {target}"
            )
            return
        rows.append(Rows(name, 0, width * columns))
    composition.add(target, rows)
