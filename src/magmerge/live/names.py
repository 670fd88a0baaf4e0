"""Which tensor of a checkpoint is which parameter of a live module."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

WRAPPINGS = ("base_model.model.", "module.", "_orig_mod.")
"""What PEFT, data parallelism and compilation put before a module's own names."""


def stored_names(model: nn.Module, tensors: Collection[str]) -> dict[str, str]:
    """Each parameter or persistent buffer of `model`, by its name there, to its tensor's name.

    Names are equal, but for the wrapping of PEFT layers (`base_layer`), for those that transformers
    saves under other names than the module has, and for one leading part more or less on either
    side, as between a bare encoder and a classifier. What has no counterpart is left out; a
    parameter under two names needs a tensor for one of them.
    """
    own = model.state_dict(keep_vars=True)
    plain = {name: _unwrapped(name) for name in own}
    matched = (
        {name: stored for name, stored in candidates.items() if stored in tensors}
        for names in (plain, plain | _saved_names(model, own))
        for candidates in _candidates(names, tensors)
    )
    names = max(matched, key=len)
    stored = {id(own[name]): tensor for name, tensor in names.items()}
    return {
        name: names.get(name, stored[id(tensor)])
        for name, tensor in own.items()
        if id(tensor) in stored
    }


def _saved_names(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that transformers gives to parameters when it saves them, where they differ.

    Told by what becomes of tensors without data; those that are taken apart or put together on the
    way have no one name.
    """
    if not hasattr(model, "save_pretrained"):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        # Before version 5 modules were saved under their own names.
        return {}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    known = {id(tensor): name for name, tensor in empty.items()}
    saved = revert_weight_conversion(model, dict(empty))
    return {known[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in known}


def _candidates(plain: Mapping[str, str], tensors: Collection[str]) -> list[dict[str, str]]:
    """The names as they are, and with each leading part taken away or put before them."""
    candidates = [dict(plain)]
    for part in sorted({name.partition(".")[0] for name in (*plain.values(), *tensors)}):
        shorter = {
            name: text if text in tensors else text.removeprefix(f"{part}.")
            for name, text in plain.items()
        }
        longer = {
            name: text if text in tensors else f"{part}.{text}" for name, text in plain.items()
        }
        candidates += [shorter, longer]
    return candidates


def _unwrapped(name: str) -> str:
    for wrapping in WRAPPINGS:
        name = name.removeprefix(wrapping)
    return name.replace(".base_layer.", ".")
