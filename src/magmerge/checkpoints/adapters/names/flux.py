"""Flux' transformer in its authors' names and in diffusers': fused projections are taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

from magmerge.checkpoints.adapters.nouns import Composition, ModuleSpec, Rows, whole

_TABLE = """
img_in                          x_embedder
txt_in                          context_embedder
time_in.in_layer                time_text_embed.timestep_embedder.linear_1
time_in.out_layer               time_text_embed.timestep_embedder.linear_2
vector_in.in_layer              time_text_embed.text_embedder.linear_1
vector_in.out_layer             time_text_embed.text_embedder.linear_2
guidance_in.in_layer            time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer           time_text_embed.guidance_embedder.linear_2
final_layer.linear              proj_out
final_layer.adaLN_modulation.1  norm_out.linear
double_blocks.#.img_mod.lin     D.norm1.linear
double_blocks.#.txt_mod.lin     D.norm1_context.linear
double_blocks.#.img_attn.proj   D.attn.to_out.0
double_blocks.#.txt_attn.proj   D.attn.to_add_out
double_blocks.#.img_mlp.0       D.ff.net.0.proj
double_blocks.#.img_mlp.2       D.ff.net.2
double_blocks.#.txt_mlp.0       D.ff_context.net.0.proj
double_blocks.#.txt_mlp.2       D.ff_context.net.2
double_blocks.#.img_attn.qkv    D.attn.to_q D.attn.to_k D.attn.to_v
double_blocks.#.txt_attn.qkv    D.attn.add_q_proj D.attn.add_k_proj D.attn.add_v_proj
single_blocks.#.modulation.lin  S.norm.linear
single_blocks.#.linear2         S.proj_out
single_blocks.#.linear1         S.attn.to_q S.attn.to_k S.attn.to_v S.proj_mlp
"""
"""The authors' names and diffusers': several for a fused projection. # is a block's number; D and S
are transformer_blocks.# and single_transformer_blocks.#.
"""
_SWAPPED = "final_layer_adaLN_modulation_1"
"""Its rows are shift and scale in the authors' model, scale and shift in diffusers'."""
_WIDTHS = (1, 1, 1, 4)
"""Rows of q, k, v and the MLP in linear1, in multiples of the columns."""
_TO_DIFFUSERS: dict[str, tuple[str, ...]] = {}
for _line in _TABLE.strip().splitlines():
    _own, *_theirs = (
        _line.replace("D.", "transformer_blocks.#.")
        .replace("S.", "single_transformer_blocks.#.")
        .split()
    )
    _TO_DIFFUSERS[_own.replace(".", "_")] = tuple(_theirs)
_SLOTS = {
    part: (own, position)
    for own, parts in _TO_DIFFUSERS.items()
    for position, part in enumerate(parts)
}
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
    if pattern not in _TO_DIFFUSERS:
        return False
    targets = [f"{prefix}{part.replace('#', number)}" for part in _TO_DIFFUSERS[pattern]]
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
        own, position = _SLOTS.get(pattern, ("", 0))
        target = f"{prefix}{own.replace('#', number)}"
        if not own:
            composition.rename(name, None, spec, "Flux has no such module")
        elif len(_TO_DIFFUSERS[own]) > 1:
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
