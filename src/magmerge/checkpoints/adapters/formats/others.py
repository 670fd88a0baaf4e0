"""Weights that lie beside an adapter: what was trained with it and is no adapter of anything."""

from __future__ import annotations

from pathlib import Path

from magmerge.checkpoints.adapters.formats.stored import StoredAdapter, StoredTensor
from magmerge.checkpoints.lora import PREFIX
from magmerge.checkpoints.opening import open_checkpoint
from magmerge.core.errors import AdapterError, EmptyCheckpointError
from magmerge.core.types import TensorSpec

TRAINED = (
    "non_lora_trainables.bin",
    "non_lora_trainables.safetensors",
    "trainable_params.bin",
    "trainable_params.safetensors",
)
"""Files of tensors that replace the base's: LLaVA's trainer writes the first, LongLoRA's the third.
"""
WRAPPERS = ("module.", "_orig_mod.")
"""What parallel and compiled models put before a name."""
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
OF_TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")
"""What the names of files begin with that a trainer needs to go on, and a model does not."""


def with_other_weights(adapter: StoredAdapter, folder: Path) -> StoredAdapter:
    """`adapter` with the tensors that its folder holds besides; a note for files that are not read.

    AdapterError where such a tensor is in the adapter too.
    """
    trained = [folder / name for name in TRAINED if (folder / name).is_file()]
    replaced = dict(adapter.replaced)
    for file in trained:
        for name, tensor in _tensors(file).items():
            if name in replaced or name.removesuffix(".weight") in adapter.stored:
                raise AdapterError(
                    f"it is in the adapter beside {file.name} too",
                    source=adapter.source,
                    tensor=name,
                    remedy=f"remove {file.name} from the folder if it is of another training",
                )
            replaced[name] = tensor
    left = [
        f"{file} lies beside the adapter and is not read"
        for file in sorted(folder.iterdir())
        if file.suffix in WEIGHTS
        and file.name not in (*TRAINED, *ADAPTERS)
        and not file.name.startswith(OF_TRAINING)
    ]
    return StoredAdapter(
        adapter.source,
        (*adapter.files, *trained),
        adapter.naming,
        adapter.stored,
        replaced,
        adapter.metadata,
        adapter.config,
        (*adapter.notes, *left),
    )


def _tensors(file: Path) -> dict[str, StoredTensor]:
    """The file's tensors by their names in the model."""
    try:
        checkpoint = open_checkpoint(file)
    except EmptyCheckpointError:
        # A trainer writes it also where nothing else was trained.
        return {}
    found = {}
    for key, spec in checkpoint.specs.items():
        name = key
        for wrapper in (*WRAPPERS, PREFIX):
            name = name.removeprefix(wrapper)
        name = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
        found[name] = StoredTensor(TensorSpec(name, spec.shape, spec.dtype), checkpoint, key)
    return found
