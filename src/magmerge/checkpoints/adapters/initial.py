"""Adapters whose start changed the base: what they learnt is told by the adapter as it was then.

PiSSA (arXiv:2404.02948), OLoRA (arXiv:2406.01775), CorDA and LoRA-GA take s B_0 A_0 from the base
before they train, so that the task vector is s (B A - B_0 A_0): factors of both ranks together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from magmerge.checkpoints.adapters.formats.keys import CONFIG
from magmerge.checkpoints.adapters.nouns import Adapter, LowRank, Module
from magmerge.core.errors import AdapterError, shortened

STARTS = ("pissa", "olora", "corda", "lora_ga")
"""What `init_lora_weights` begins with where the start is told by an adapter."""
FOLDERS = ("initial", *(f"{start}_init" for start in STARTS))
"""What the folder of the initial adapter is called, in the adapter's own or beside it."""
PLAIN = {"init_lora_weights": True}


def initial_folder(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Where the initial adapter lies of one that needs it; None where it needs none or has none."""
    if not str(config.get("init_lora_weights")).lower().startswith(STARTS):
        return None
    places = [place / name for place in (folder, folder.absolute().parent) for name in FOLDERS]
    return next((place for place in places if (place / CONFIG).is_file()), None)


def learnt_since(adapter: Adapter, initial: Adapter) -> Adapter:
    """The adapter less the initial one; AdapterError where they are not of one training."""
    odd = sorted(adapter.stored.keys() ^ initial.stored.keys())
    odd += [
        name
        for name in adapter.stored.keys() & initial.stored.keys()
        if adapter.stored[name].spec.shape != initial.stored[name].spec.shape
    ]
    if odd:
        raise AdapterError(
            f"its initial adapter {initial.source} has other modules: {shortened(odd)}",
            source=adapter.source,
            remedy="put the adapter that this training began with there",
        )
    stored = {
        name: _difference(module, initial.stored[name]) for name, module in adapter.stored.items()
    }
    note = f"{adapter.source} is taken less the adapter that it began with, {initial.source}"
    return replace(
        adapter,
        stored=stored,
        files=(*adapter.files, *initial.files),
        notes=(*adapter.notes, note),
    )


def _difference(module: Module, initial: Module) -> Module:
    """s B A - s_0 B_0 A_0 as one pair of factors."""
    rank = module.spec.rank + initial.spec.rank
    spec = replace(module.spec, rank=rank)
    return Module(spec, partial(_factors, module, initial))


def _factors(module: Module, initial: Module) -> LowRank:
    import torch

    last, first = module.read(), initial.read()
    before = first.up * (-first.scale / last.scale)
    return LowRank(
        torch.cat([last.up, before.to(last.up.dtype)], dim=1),
        torch.cat([last.down, first.down.to(last.down.dtype)]),
        last.scale,
    )
