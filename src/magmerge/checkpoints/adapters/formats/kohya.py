"""Files in kohya's manner: lora_unet_M.lora_down.weight, .lora_up.weight and .alpha."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from magmerge.checkpoints.adapters.formats.diffusers import ENTRY
from magmerge.checkpoints.adapters.formats.headers import stored_module
from magmerge.checkpoints.adapters.formats.keys import by_module
from magmerge.checkpoints.adapters.names.naming import flavour
from magmerge.checkpoints.adapters.names.vocabulary import flat
from magmerge.checkpoints.adapters.nouns import Adapter, Content, Encoded
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_COMFY_ENCODERS = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"}
_COMFY_TEXT = re.compile(r"text_encoders\.([a-z0-9_]+)\.transformer\.(.+)")


def read_kohya(checkpoint: Checkpoint, metadata: Mapping[str, str]) -> Adapter:
    """The adapter of a file whose keys are in kohya's manner, or in ComfyUI's, which only differ
    from it by dots and the prefix.
    """
    modules = by_module(checkpoint, canonical)
    stored = {name: stored_module(checkpoint, name, roles) for name, roles in modules.items()}
    return Adapter(checkpoint.source, checkpoint.files, flavour(stored), stored, metadata=metadata)


def canonical(module: str) -> str:
    """kohya's name for a module, of ComfyUI's name or its own."""
    if module.startswith("diffusion_model."):
        return f"lora_unet_{flat(module.removeprefix('diffusion_model.'))}"
    text = _COMFY_TEXT.fullmatch(module)
    return f"{_COMFY_ENCODERS[text[1]]}{flat(text[2])}" if text else module


def write_kohya(content: Content) -> Encoded:
    """One file: for each module its factors, and alpha such that alpha / rank is its scale."""
    import torch

    from magmerge.checkpoints.adapters.formats.products import stored_factors

    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, (up, down, scale) in stored_factors(content):
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        alphas[name] = scale * down.shape[0]
        tensors[f"{name}.alpha"] = torch.tensor(alphas[name], dtype=torch.float32)
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
