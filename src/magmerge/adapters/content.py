"""The merged adapter as it will be stored: its modules, what it replaces, its header's entries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from magmerge import dtypes
from magmerge.adapters.merging import Finished, cast_once
from magmerge.adapters.nouns import Content
from magmerge.adapters.renaming import rename_content
from magmerge.adapters.union import union_of
from magmerge.errors import StructureError, printable
from magmerge.faults import matches
from magmerge.models import Sources
from magmerge.recipe import AdapterOutput, Recipe
from magmerge.version import __version__

HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Header entries that say what an input's bytes were."""


def replaced(
    recipe: Recipe, sources: Sources, dtype: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors that adapters replace as a whole: averaged, since no base tells their change."""
    union = union_of(sources)
    names = dict.fromkeys(name for one in union.adapters for name in one.whole)
    names = {name: None for name in names if not matches(name, recipe.ignore)}
    found, notes = {}, []
    for name in names:
        owners = [one for one in union.adapters if name in one.whole]
        shapes = {one.whole[name].shape for one in owners}
        if len(shapes) > 1:
            told = ", ".join(f"{list(one.whole[name].shape)} in {one.source}" for one in owners)
            raise StructureError(
                [f"{name}, which the adapters replace as a whole, has shape {told}"],
                remedy=f"drop it with --ignore '{name}' (ignore=)",
            )
        total = owners[0].read_whole(name).to(torch.float32, copy=True)
        for one in owners[1:]:
            total += one.read_whole(name)
        found[name] = cast_once(total.div_(len(owners)), dtypes.torch_dtype(dtype), name)
        if len(owners) > 1:
            notes.append(
                f"{printable(name)} is replaced as a whole by {len(owners)} adapters: the result "
                "has their mean, whatever the method"
            )
    return found, tuple(notes)


def content_of(
    recipe: Recipe,
    sources: Sources,
    merged: Mapping[str, Finished],
    whole: Mapping[str, Tensor],
    output: AdapterOutput,
) -> Content:
    """The adapter, under the naming that is asked for or that of the first input."""
    union = union_of(sources)
    content = Content(
        naming=union.adapters[0].naming,
        modules={name: one.factors for name, one in merged.items()},
        kinds={name: union.modules[name].kind for name in merged},
        whole=whole,
        metadata={
            **_shared([one.metadata for one in union.adapters]),
            "magmerge": __version__,
            "magmerge_recipe": json.dumps(recipe.model_dump(mode="json")),
        },
        config=_config([one.config for one in union.adapters if one.config], whole),
    )
    return rename_content(content, output.naming or union.naming)  # type: ignore[arg-type]


def bytes_of(content: Content) -> int:
    """What its tensors take, without the file's header."""
    tensors = [part for one in content.modules.values() for part in one[:2]]
    return sum(one.numel() * one.element_size() for one in (*tensors, *content.whole.values()))


def _config(many: Sequence[Mapping[str, Any]], whole: Mapping[str, Tensor]) -> dict[str, Any]:
    """What all have alike; of PEFT's settings of biases the widest, where there are any."""
    found = _shared(many)
    settings = [one for one in ("all", "lora_only") if any(c.get("bias") == one for c in many)]
    if settings and any(name.endswith(".bias") for name in whole):
        found["bias"] = settings[0]
    elif "bias" in found:
        found["bias"] = "none"
    return found


def _shared(many: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all have, and alike; no digests of what the inputs were."""
    if not many:
        return {}
    first, *others = many
    return {
        key: value
        for key, value in first.items()
        if key not in HASHES and all(key in other and other[key] == value for other in others)
    }
