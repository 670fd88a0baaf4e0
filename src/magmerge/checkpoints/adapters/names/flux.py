"""Flux' transformer in its authors' names and in diffusers': fused projections are taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from magmerge.checkpoints.adapters.names.composition import Composition, Rows, whole
from magmerge.checkpoints.adapters.nouns import ModuleSpec

_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
_FUSED = {
    "double_blocks.img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "single_blocks.linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
# Its rows are shift and scale in the authors' model, scale and shift in diffusers'.
_SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")
_WIDTHS = (1, 1, 1, 4)
"""Rows of q, k, v and the MLP in linear1, in multiples of the columns."""
_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


class _Slot(NamedTuple):
    """One part of a fused projection."""

    fused: str
    position: int


def _names() -> dict[str, str]:
    """diffusers' names by the authors', both without the block's number and the first by _."""
    table = {own.replace(".", "_"): theirs for own, theirs in _OUTSIDE.items()}
    for block, inside in (("double_blocks", _DOUBLE), ("single_blocks", _SINGLE)):
        for own, theirs in inside.items():
            table[f"{block}_#_{own.replace('.', '_')}"] = f"{_BLOCKS[block]}.#.{theirs}"
    return table


def _fused() -> dict[str, tuple[str, ...]]:
    table = {}
    for own, parts in _FUSED.items():
        block, _, inner = own.partition(".")
        key = f"{block}_#_{inner.replace('.', '_')}"
        table[key] = tuple(f"{_BLOCKS[block]}.#.{part}" for part in parts)
    return table


_TO_DIFFUSERS = _names()
_TO_OWN = {theirs: own for own, theirs in _TO_DIFFUSERS.items()}
_PARTS = _fused()
_SLOTS = {
    part: _Slot(fused, position)
    for fused, parts in _PARTS.items()
    for position, part in enumerate(parts)
}
_SWAPPED_FLAT = _SWAPPED[0].replace(".", "_")
_OWN_BLOCK = re.compile(r"(double|single)_blocks_(0|[1-9]\d{0,3})_")
_THEIR_BLOCK = re.compile(r"(transformer|single_transformer)_blocks\.(0|[1-9]\d{0,3})\.")


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
    if pattern in _PARTS:
        targets = [f"{prefix}{part.replace('#', number)}" for part in _PARTS[pattern]]
        _take_apart(name, targets, spec, composition)
    elif flat_name == _SWAPPED_FLAT:
        _swap(name, f"{prefix}{_SWAPPED[1]}", spec, composition)
    elif pattern in _TO_DIFFUSERS:
        composition.add(f"{prefix}{_TO_DIFFUSERS[pattern].replace('#', number)}", whole(name, spec))
    else:
        return False
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
        if pattern in _SLOTS:
            slot = _SLOTS[pattern]
            parts = fused.setdefault(f"{prefix}{slot.fused.replace('#', number)}", {})
            parts[slot.position] = (name, spec)
        elif theirs == _SWAPPED[1]:
            _swap(name, f"{prefix}{_SWAPPED_FLAT}", spec, composition)
        else:
            own = _TO_OWN.get(pattern)
            new = None if own is None else f"{prefix}{own.replace('#', number)}"
            composition.rename(name, new, spec, "Flux has no such module")
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
