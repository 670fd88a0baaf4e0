"""Single files: diffusers' (unet.M.lora_A.weight, and the older M.processor.to_k_lora.down.weight)
and those in kohya's manner (lora_unet_M.lora_down.weight, .lora_up.weight and .alpha).

The entry lora_adapter_metadata in the header of diffusers' holds PEFT's settings, by component.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.adapters.formats.headers import Parts, parts_of
from magmerge.checkpoints.adapters.formats.keys import Roles, by_module, style_of
from magmerge.checkpoints.adapters.formats.lora_config import (
    AGAINST,
    ScaleOrigin,
    check_config,
    check_kind,
    config_fields,
    sound_scale,
)
from magmerge.checkpoints.adapters.formats.spelling import KOHYA, keys_of
from magmerge.checkpoints.adapters.names.naming import flavour
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS, flat, is_text, lone, prefixed
from magmerge.checkpoints.adapters.nouns import Adapter, Content, Encoded, LowRank, ModuleKeys
from magmerge.core.errors import AdapterError, shortened
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming

if TYPE_CHECKING:
    from torch import Tensor

ENTRY = "lora_adapter_metadata"
REMEDY = f"remove the entry {ENTRY} from the header, or restore it"
_TEXT_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_ATTENTION = re.compile(r"(.+\.attn\d?)\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)")
_COMFY_ENCODERS = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"}
_COMFY_TEXT = re.compile(r"text_encoders\.([a-z0-9_]+)\.transformer\.(.+)")


def read_diffusers(checkpoint: Checkpoint, metadata: Mapping[str, str], naming: Naming) -> Adapter:
    """The adapter of a file in diffusers' manner, new or old; modules get diffusers' new names.

    AdapterError for modules of no diffusion model, and for settings other than plain LoRA's.
    """
    modules = by_module(checkpoint, diffusers_name)
    strange = [name for name in modules if prefixed(name) is None]
    if strange:
        raise AdapterError(
            f"{len(strange)} of its modules are of no model of a diffusion pipeline, and no "
            f"adapter_config.json says how they are scaled: {shortened(strange)}",
            source=checkpoint.source,
            remedy="give the adapter's folder, with its adapter_config.json",
        )
    configs = _configs(metadata, checkpoint.source)
    for name, roles in modules.items():
        config = _config_of(name, configs)
        if config is not None and roles.keys() & {"up", "dora"}:
            check_kind({**config, "peft_type": "LORA"}, {name: roles}, checkpoint.source)
    parts = parts_of(
        checkpoint, modules, lambda name, roles: _scale(checkpoint, name, roles, configs)
    )
    return _adapter(checkpoint, naming, parts, metadata, keys_of(modules))


def _adapter(
    checkpoint: Checkpoint,
    naming: Naming,
    parts: Parts,
    metadata: Mapping[str, str],
    keys: Mapping[str, ModuleKeys],
) -> Adapter:
    return Adapter(
        checkpoint.source,
        checkpoint.files,
        naming,
        parts.stored,
        metadata=metadata,
        added=parts.added,
        rescales=parts.rescales,
        style=style_of(checkpoint),
        keys=keys,
    )


def diffusers_name(module: str) -> str:
    """The new name of a module, with its component: unet.mid_block.attentions.0.proj_in.

    Older files leave the component out, and call a projection attn1.processor.to_out_lora.
    """
    bare = module.replace(".processor.", ".")
    old = bare.endswith("_lora")
    path, _, leaf = bare.removesuffix("_lora").rpartition(".")
    part = prefixed(bare) or lone(bare)
    if old and path:
        in_text = part is not None and is_text(part.component)
        own = _TEXT_LEAVES.get(leaf, leaf) if in_text else "to_out.0" if leaf == "to_out" else leaf
        bare = f"{path}.{own}"
        part = prefixed(bare) or lone(bare)
    return bare if part is None else str(part)


def _configs(metadata: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    """PEFT's settings of each component, under "" of a file that names none; or an AdapterError."""
    if ENTRY not in metadata:
        return {}
    try:
        entries = json.loads(metadata[ENTRY])
    except (ValueError, RecursionError) as error:
        raise _fault(f"is no JSON: {error}", source) from error
    if not isinstance(entries, dict):
        raise _fault("is no JSON object", source)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        component, _, name = key.partition(".")
        if component not in COMPONENTS or not name:
            component, name = "", key
        configs.setdefault(component, {})[name] = value
    for config in configs.values():
        check_config({**config, "peft_type": "LORA"}, source)
    return configs


def _config_of(name: str, configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The settings for a module; None where the file has none."""
    part = prefixed(name)
    return None if part is None else configs.get(part.component, configs.get(""))


def _scale(
    checkpoint: Checkpoint, name: str, roles: Roles, configs: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """The scale of a module's task vector as the settings have it; None where they say nothing."""
    part, config = prefixed(name), _config_of(name, configs)
    if part is None or "down" not in roles:
        return None
    shape = checkpoint.specs[roles["down"]].shape
    if config is None or not shape or not shape[0]:
        return None
    origin = ScaleOrigin(checkpoint.source, f"its header entry {ENTRY}", REMEDY, roles["down"])
    return sound_scale(part.name, shape[0], config, origin)


def write_diffusers(content: Content) -> Encoded:
    """One file for diffusers, new or, for that naming, old: scales are multiplied into the up
    factors, so that any version of the loader, which takes a scale of 1 where none is told, gives
    the same task vectors.
    """
    from magmerge.checkpoints.adapters.formats.products import stored_factors

    old = content.naming == "diffusers_old"
    tensors: dict[str, Tensor] = {}
    alphas = any(keys.alpha for keys in content.keys.values())
    for name, factors in stored_factors(content, unscaled=not alphas):
        start, low, high = (_old_start(name), "down", "up") if old else (name, "lora_A", "lora_B")
        own = ModuleKeys(start, f"{low}.weight", f"{high}.weight", alphas)
        tensors |= _spelt(factors, content.keys.get(name, own)._replace(alpha=alphas))
    told = other_entries(content) if old or alphas else _entries(content)
    return Encoded(tensors, told, {})


def _spelt(factors: LowRank, keys: ModuleKeys) -> dict[str, Tensor]:
    """A module's tensors by their keys: its factors, and alpha, which is its scale times rank."""
    import torch

    up, down, scale = factors
    alpha = torch.tensor(scale * down.shape[0], dtype=torch.float32)
    more = {f"{keys.stem}.alpha": alpha} if keys.alpha else {}
    return {f"{keys.stem}.{keys.down}": down, f"{keys.stem}.{keys.up}": up, **more}


def _entries(content: Content) -> dict[str, str]:
    """The header's entries for the content once its scales are in the up factors. The settings are
    told anew where the input told them, and where ranks differ: from them a loader would guess
    other scales.
    """
    metadata = other_entries(content)
    before = _configs(content.metadata, "the adapter")
    names: dict[str, dict[str, int]] = {}
    for name, factors in content.modules.items():
        part = prefixed(name)
        if part is not None:
            # Newer versions of transformers have no text_model in their names; PEFT matches ends.
            own = part.name.removeprefix("text_model.") if is_text(part.component) else part.name
            names.setdefault(part.component, {})[own] = len(factors.down)
    if not before and all(len(set(ranks.values())) == 1 for ranks in names.values()):
        return metadata
    entries: dict[str, Any] = {}
    for component, ranks in names.items():
        kept = before.get(component, before.get("", {}))
        config = {key: value for key, value in kept.items() if key not in AGAINST}
        config |= config_fields({name: (rank, 1.0) for name, rank in ranks.items()})
        entries |= {f"{component}.{key}": value for key, value in config.items()}
    return {**metadata, ENTRY: json.dumps(entries, indent=2, sort_keys=True)}


def other_entries(content: Content) -> dict[str, str]:
    """The header's entries without PEFT's settings."""
    rest = {key: text for key, text in content.metadata.items() if key != ENTRY}
    return {"format": "pt", **rest}


def _old_start(name: str) -> str:
    """A key of the old files up to down or up: an attention's projection names its processor."""
    part = prefixed(name)
    if part is not None and is_text(part.component):
        return f"{name}.lora_linear_layer"
    attention = _OLD_ATTENTION.fullmatch(name)
    if attention is None:
        return f"{name}.lora"
    return f"{attention[1]}.processor.{attention[2].removesuffix('.0')}_lora"


def _fault(problem: str, source: str) -> AdapterError:
    return AdapterError(f"its header entry {ENTRY} {problem}", source=source, remedy=REMEDY)


def read_kohya(checkpoint: Checkpoint, metadata: Mapping[str, str]) -> Adapter:
    """The adapter of a file in kohya's manner, or in ComfyUI's: other prefixes, and dots."""
    modules = by_module(checkpoint, kohya_name)
    parts = parts_of(checkpoint, modules, lambda _name, _roles: None)
    return _adapter(checkpoint, flavour(modules), parts, metadata, keys_of(modules))


def kohya_name(module: str) -> str:
    """kohya's name for a module, of ComfyUI's name or its own."""
    if module.startswith("diffusion_model."):
        return f"lora_unet_{flat(module.removeprefix('diffusion_model.'))}"
    text = _COMFY_TEXT.fullmatch(module)
    return f"{_COMFY_ENCODERS[text[1]]}{flat(text[2])}" if text else module


def write_kohya(content: Content) -> Encoded:
    """One file: for each module its factors, and alpha such that alpha / rank is its scale, but
    where the input's file has no alphas.
    """
    from magmerge.checkpoints.adapters.formats.products import stored_factors

    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    kept = not content.keys or any(keys.alpha for keys in content.keys.values())
    for name, factors in stored_factors(content, unscaled=not kept):
        own = ModuleKeys(name, *KOHYA, kept)
        tensors |= _spelt(factors, content.keys.get(name, own)._replace(alpha=kept))
        alphas[name] = factors.scale * factors.down.shape[0]
    for name, tensor in content.added.items():
        module, _, leaf = name.rpartition(".")
        stem = content.keys[module].stem if module in content.keys else module
        tensors[f"{stem}.{'diff_b' if leaf == 'bias' else 'diff'}"] = tensor.contiguous()
    ranks = {len(factors.down) for factors in content.modules.values()}
    metadata = {key: text for key, text in content.metadata.items() if key != ENTRY}
    values: dict[str, set[int] | set[float]] = {
        "ss_network_dim": ranks,
        "ss_network_alpha": set(alphas.values()),
    }
    for key in values.keys() & metadata.keys():
        # kohya's word for several values.
        metadata[key] = str(*values[key]) if len(values[key]) == 1 else "Dynamic"
    return Encoded(tensors, metadata, {})
