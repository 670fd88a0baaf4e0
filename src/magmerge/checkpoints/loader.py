"""From what a user names (a folder, a file, a mapping, a module) to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from magmerge.checkpoints import pickles
from magmerge.checkpoints.adapters.formats.keys import CONFIG, is_adapter_file
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.kinds import read_errors
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint, from_module
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint, check_against_index, read_index
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, no_such_model
from magmerge.core.lazy import load
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint
else:
    Model: TypeAlias = Any

TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
NAMES = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")


def open_checkpoint(model: Model) -> Checkpoint:
    """Open a model without reading its tensors, which are seen as what they stand for: weights of 8
    bits times their scales.

    `model` is a folder or file path, a mapping from names to tensors, a torch module, or a
    checkpoint. Raises CheckpointError, with the remedy, for anything missing, corrupt or unsafe.
    """
    checkpoint = open_stored(model)
    if checkpoint is not model and any(
        spec.dtype in dtypes.QUANTISED for spec in checkpoint.specs.values()
    ):
        return cast("Checkpoint", load("magmerge.checkpoints.float8:with_values")(checkpoint))
    return checkpoint


def open_stored(model: Model) -> Checkpoint:
    """Open a model as `open_checkpoint` does, its tensors as they are stored."""
    if isinstance(model, str | Path):
        with read_errors(model):
            return _open_path(_named_path(model))
    if isinstance(model, Mapping):
        return MemoryCheckpoint(model)
    if hasattr(model, "specs") and hasattr(model, "read"):
        return cast("Checkpoint", model)
    if hasattr(model, "state_dict"):
        return from_module(cast("nn.Module", model))
    raise CheckpointError(
        f"a {type(model).__name__} is no model",
        remedy="give a folder, a file, a mapping from names to tensors, or a torch module",
    )


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether it is an adapter, as its keys or PEFT's configuration tell, and no whole model."""
    folder = checkpoint.folder
    if folder is not None and (folder / CONFIG).is_file():
        return all(file.name.startswith("adapter_model.") for file in checkpoint.files)
    return is_adapter_file(checkpoint)


def adapts(model: Model) -> bool:
    """Whether a model is an adapter's file or folder, or a folder of such."""
    if not isinstance(model, str | Path):
        return False
    return adapts_parts(_named_path(model)) or is_adapter(open_checkpoint(model))


def adapts_parts(folder: Path) -> bool:
    """Whether it is a folder of PEFT's folders, one for each model of a diffusion pipeline."""
    return not (folder / CONFIG).is_file() and any(
        (folder / component / CONFIG).is_file() for component in COMPONENTS
    )


def _named_path(model: str | Path) -> Path:
    if str(model) == "" or "\0" in str(model):
        what = "is empty" if str(model) == "" else f"holds a NUL: {str(model)!r}"
        raise CheckpointError(f"a model's path {what}", remedy="name a folder or a file")
    return Path(model)


def _open_path(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise no_such_model(path)
    if path.name.endswith(".index.json"):
        return _open_index(path, str(path))
    if path.suffix == ".safetensors" or path.suffix in TORCH_SUFFIXES:
        # The folder's config tells what the tensors are, also where its one file is named.
        folder = path.parent if (path.parent / "config.json").is_file() else None
        return _open_files([path], str(path), folder)
    raise CheckpointError(
        "no known kind of checkpoint",
        source=path,
        remedy="magmerge reads .safetensors, and torch files named .bin, .pt, .pth, .ckpt or .pkl",
    )


def _open_folder(folder: Path) -> Checkpoint:
    for suffix in (".safetensors", ".bin"):
        for name in NAMES:
            single, index = folder / f"{name}{suffix}", folder / f"{name}{suffix}.index.json"
            if single.is_file() and index.is_file():
                raise CheckpointError(
                    f"it holds both {single.name} and {index.name}",
                    source=folder,
                    remedy="remove the one that is left over from another save",
                )
            if index.is_file():
                return _open_index(index, str(folder))
            if single.is_file():
                return _open_files([single], str(folder), folder)
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1:
        return _open_files(lone, str(folder), folder)
    listing = ", ".join(file.name for file in lone) or "no .safetensors or .bin file"
    raise CheckpointError(
        f"no checkpoint in this folder: it holds {listing}",
        source=folder,
        remedy="name the file itself, or a folder with model.safetensors or its index",
    )


def _open_index(index: Path, source: str) -> Checkpoint:
    shards, weight_map = read_index(index)
    checkpoint = _open_files(shards, source, index.parent)
    check_against_index(checkpoint, weight_map)
    return checkpoint


def _open_files(files: list[Path], source: str, folder: Path | None) -> Checkpoint:
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsCheckpoint(files, source, folder)
    return pickles.open_torch(files, source, folder)
