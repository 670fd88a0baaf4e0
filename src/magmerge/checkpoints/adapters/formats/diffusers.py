"""diffusers' files: unet.M.lora_A.weight, and the older M.processor.to_k_lora.down.weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from magmerge.checkpoints.adapters.formats import diffusers_metadata
from magmerge.checkpoints.adapters.formats.headers import stored_module
from magmerge.checkpoints.adapters.formats.sorting import by_module, listing
from magmerge.checkpoints.adapters.formats.stored import StoredAdapter
from magmerge.checkpoints.adapters.formats.writable import stored_factors
from magmerge.checkpoints.adapters.names.components import is_text, prefixed, told
from magmerge.checkpoints.adapters.nouns import Content, Encoded
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming

if TYPE_CHECKING:
    from torch import Tensor

_TEXT_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_ATTENTION = re.compile(r"(.+\.attn\d?)\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)")


def read_diffusers(
    checkpoint: Checkpoint, metadata: Mapping[str, str], naming: Naming
) -> StoredAdapter:
    """The adapter of a file in diffusers' manner, new or old; modules get diffusers' new names."""
    modules = by_module(checkpoint, canonical)
    _check_components(checkpoint, list(modules))
    configs = diffusers_metadata.read(metadata, checkpoint.source)
    stored = {}
    for name, roles in modules.items():
        scale = diffusers_metadata.scale(checkpoint, name, roles, configs)
        stored[name] = stored_module(checkpoint, name, roles, scale)
    return StoredAdapter(
        checkpoint.source, checkpoint.files, naming, stored, metadata=dict(metadata)
    )


def canonical(module: str) -> str:
    """The new name of a module, with its component: unet.mid_block.attentions.0.proj_in.

    Older files leave the component out, and call a projection attn1.processor.to_out_lora.
    """
    bare = module.replace(".processor.", ".")
    old = bare.endswith("_lora")
    path, _, leaf = bare.removesuffix("_lora").rpartition(".")
    part = prefixed(bare) or told(bare)
    if old and path:
        in_text = part is not None and is_text(part.component)
        own = _TEXT_LEAVES.get(leaf, leaf) if in_text else "to_out.0" if leaf == "to_out" else leaf
        bare = f"{path}.{own}"
        part = prefixed(bare) or told(bare)
    return bare if part is None else str(part)


def _check_components(checkpoint: Checkpoint, names: list[str]) -> None:
    strange = [name for name in names if prefixed(name) is None]
    if strange:
        raise AdapterError(
            f"{len(strange)} of its modules are of no model of a diffusion pipeline, and no "
            f"adapter_config.json says how they are scaled: {listing(strange)}",
            source=checkpoint.source,
            remedy="give the adapter's folder, with its adapter_config.json",
        )


def write_diffusers(content: Content) -> Encoded:
    """One file for diffusers: scales are multiplied into the up factors, so that any version of
    the loader, which takes a scale of 1 where none is told, gives the same task vectors.
    """
    tensors: dict[str, Tensor] = {}
    for name, (up, down, _) in stored_factors(_unscaled(content)):
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
    return Encoded(tensors, diffusers_metadata.updated(content), {})


def write_diffusers_old(content: Content) -> Encoded:
    """One file in the manner of diffusers' first LoRA files; scales are in the up factors."""
    tensors: dict[str, Tensor] = {}
    for name, (up, down, _) in stored_factors(_unscaled(content)):
        start = _old_start(name)
        tensors[f"{start}.down.weight"] = down
        tensors[f"{start}.up.weight"] = up
    return Encoded(tensors, diffusers_metadata.dropped(content), {})


def _unscaled(content: Content) -> Content:
    from magmerge.checkpoints.adapters.formats.products import scaled

    modules = {name: scaled(factors) for name, factors in content.modules.items()}
    return replace(content, modules=modules)


def _old_start(name: str) -> str:
    """A key of the old files up to down or up: that of an attention's projection names its
    processor.
    """
    part = prefixed(name)
    if part is not None and is_text(part.component):
        return f"{name}.lora_linear_layer"
    attention = _OLD_ATTENTION.fullmatch(name)
    if attention is None:
        return f"{name}.lora"
    return f"{attention[1]}.processor.{attention[2].removesuffix('.0')}_lora"
