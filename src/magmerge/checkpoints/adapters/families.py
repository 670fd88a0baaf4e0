"""For which diffusion model an adapter was trained, and which one a base is, as shapes tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

from magmerge.checkpoints.adapters.bases import Found
from magmerge.checkpoints.adapters.nouns import Adapter
from magmerge.core.components import layout_of
from magmerge.core.models import Checkpoint

INPUTS = {768: "an SD1", 1024: "an SD2", 2048: "an SDXL"}
"""Features of the text that cross-attention takes in each version of Stable Diffusion."""

_CROSS = re.compile(r"(?:.*[._])?attn2[._](?:processor[._])?to_[kv](?:_lora|\.weight)?")
_FLUX = re.compile(r"(?:.*[._])?(?:double_blocks|single_blocks|single_transformer_blocks)[._]\d+.*")
_LAYOUTS = {"sd1": "an SD1", "sd2": "an SD2", "sdxl": "an SDXL", "flux": "a Flux"}


def mismatch(adapter: Adapter, found: Found, base: Checkpoint) -> str | None:
    """What tells that the adapter is for another model than the base; None if nothing does."""
    own, its = _inputs_of_adapter(adapter), _inputs_of_base(base)
    theirs = _family(base.specs, its) or _LAYOUTS.get(layout_of(base.specs) or "")
    mine = _family(adapter.modules, own)
    pair = None if mine is None or theirs is None else f"{mine} adapter on {theirs} base"
    if found.misfits and own is not None and its is not None and own != its:
        told = f"its cross-attention has {own} inputs where the base's has {its}"
        return f"{told}: {pair}" if pair else told
    different = (found.misfits or found.lacking) and mine != theirs
    return pair if different else None


def _family(names: Iterable[str], inputs: int | None) -> str | None:
    if any(_FLUX.fullmatch(name) for name in names):
        return "a Flux"
    return None if inputs is None else INPUTS.get(inputs)


def _inputs_of_adapter(adapter: Adapter) -> int | None:
    shapes = (spec.shape for name, spec in adapter.modules.items() if _CROSS.fullmatch(name))
    return next((shape[1] for shape in shapes if len(shape) == 2), None)


def _inputs_of_base(base: Checkpoint) -> int | None:
    shapes = (spec.shape for name, spec in base.specs.items() if _CROSS.fullmatch(name))
    return next((shape[1] for shape in shapes if len(shape) == 2), None)
