"""The keys of a merge of several adapters, spelt as the first one's file spells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from magmerge.checkpoints.adapters.nouns import Adapter, ModuleKeys
from magmerge.checkpoints.adapters.translation import renamed
from magmerge.core.errors import AdapterError


def common_keys(adapters: Sequence[Adapter]) -> tuple[dict[str, ModuleKeys], str | None]:
    """The keys of all modules under the first adapter's naming, and what a reader should know
    where its manner cannot be kept. A module without a spelling gets its naming's own.
    """
    first = adapters[0]
    keys = dict(first.keys)
    if not keys or first.style == "diffusers_old":
        return keys, None
    (*ends, alpha), _ = Counter(own[1:] for own in keys.values()).most_common(1)[0]
    module, sample = next(iter(keys.items()))
    prefix = module.removesuffix(sample.stem) if module.endswith(sample.stem) else ""
    for other in adapters[1:]:
        for name in _names(other, first):
            stem = name.removeprefix(prefix)
            if name in keys:
                continue
            if first.style == "comfy":
                known: Mapping[str, ModuleKeys] = other.keys if other.style == "comfy" else {}
                if name not in known:
                    return {}, (
                        f"the result has kohya's names (lora_unet_...): {other.source} has modules "
                        f"that {first.source}, in ComfyUI's names, has not"
                    )
                stem = known[name].stem
            keys[name] = ModuleKeys(stem, ends[0], ends[1], alpha)
    return keys, None


def _names(other: Adapter, first: Adapter) -> list[str]:
    """The adapter's modules under the first one's naming; none where it has no place there, which
    the plan says.
    """
    own = other.keys if other.naming == first.naming else ()
    try:
        return [*own, *renamed(other, first.naming).modules]
    except AdapterError:
        return []
