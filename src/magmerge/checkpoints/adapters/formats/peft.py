"""PEFT's folders: adapter_config.json and base_model.model.M.lora_A.weight beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.checkpoints import lora
from magmerge.checkpoints.adapters.formats.headers import checked_scale, stored_module
from magmerge.checkpoints.adapters.formats.sorting import AGAIN, Roles, listing
from magmerge.checkpoints.adapters.formats.stored import StoredAdapter, StoredModule, StoredTensor
from magmerge.checkpoints.adapters.nouns import ModuleSpec
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

_REFUSED = {
    "use_qalora": "its A factors act on pooled inputs",
    "use_bdlora": "its factors are blocks on a diagonal",
    "arrow_config": "it chooses among adapters for each token",
    "kasa_config": "it has singular values between its factors, and changes the base",
    "monteclora_config": "its factors are samples of a distribution",
}


def read_peft(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    files: Sequence[Path],
    metadata: Mapping[str, str],
) -> StoredAdapter:
    """The adapter of one model. Modules are named as in the model, without base_model.model.

    AdapterError for anything but plain LoRA, and for keys that do not go together.
    """
    _check(checkpoint, config)
    found = lora.sort_keys(checkpoint)
    replaced_keys = list(found.replaced.values())
    factors = [*found.down.values(), *found.up.values()]
    _check_keys(checkpoint, factors, replaced_keys, found.spare)
    stored: dict[str, StoredModule] = {}
    for name in found.down:
        roles: Roles = {"up": found.up[name], "down": found.down[name]}
        stored[name] = _module(checkpoint, name, roles, config, name in found.embeddings)
    replaced = {
        name: StoredTensor(
            TensorSpec(name, checkpoint.specs[key].shape, checkpoint.specs[key].dtype),
            checkpoint,
            key,
        )
        for name, key in found.replaced.items()
    }
    return StoredAdapter(
        checkpoint.source, tuple(files), "peft", stored, replaced, dict(metadata), dict(config)
    )


def _module(
    checkpoint: Checkpoint, name: str, roles: Roles, config: Mapping[str, Any], embedding: bool
) -> StoredModule:
    shape = checkpoint.specs[roles["down"]].shape
    rank = shape[0] if shape else 0
    scale = 1.0
    if rank:
        scale = _scale(checkpoint, name, rank, config)
    module = stored_module(checkpoint, name, roles, scale)
    if not embedding:
        return module
    spec = module.spec
    kind = ModuleSpec(name, "embedding", spec.shape, spec.rank, spec.scale, spec.dtype)
    return StoredModule(kind, checkpoint, module.keys, module.product)


def _scale(checkpoint: Checkpoint, name: str, rank: int, config: Mapping[str, Any]) -> float:
    remedy = f"restore lora_alpha in {lora.CONFIG}"
    try:
        scale = lora.scale_of(name, rank, config)
    except AdapterError as error:
        problem = f"{lora.CONFIG}: {error.problem}"
        raise AdapterError(problem, source=checkpoint.source, remedy=remedy) from error
    except OverflowError as error:
        problem = f"{lora.CONFIG}: lora_alpha is too large for {name}"
        raise AdapterError(problem, source=checkpoint.source, remedy=remedy) from error
    return checked_scale(scale * rank, scale, checkpoint.source, name, remedy)


def _check(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    if not checkpoint.specs:
        raise AdapterError("it holds no tensors", source=checkpoint.source, remedy=AGAIN)
    lora.check_config(config, checkpoint.source)
    for key, why in _REFUSED.items():
        if config.get(key):
            raise AdapterError(
                f"refused: it sets {key}: {why}",
                source=checkpoint.source,
                remedy="merge it into its base with PEFT (merge_and_unload) and give the whole "
                "models",
            )


def _check_keys(
    checkpoint: Checkpoint, factors: Sequence[str], replaced: Sequence[str], spare: Collection[str]
) -> None:
    keys = {*factors, *replaced, *spare}
    twice = [key for key in checkpoint.specs if key not in keys]
    if twice:
        raise AdapterError(
            "another key is of the same factor of the same module",
            source=checkpoint.source,
            tensor=twice[0],
            remedy="remove the one that does not belong to this adapter",
        )
    strange = [key for key in replaced if not key.startswith(lora.PREFIX)]
    if not factors:
        strange = list(replaced)
    if strange:
        raise AdapterError(
            f"{len(strange)} of its keys are no adapter's: {listing(strange)}",
            source=checkpoint.source,
            remedy="give a folder that holds an adapter and nothing else",
        )
