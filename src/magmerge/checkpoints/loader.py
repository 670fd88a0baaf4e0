"""From what a user names (a folder, a file, a mapping, a module) to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from magmerge.checkpoints import pickles
from magmerge.checkpoints.adapters.formats.keys import CONFIG, is_adapter_file
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.donor import part_folders
from magmerge.checkpoints.kinds import read_errors
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint, from_module
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint, check_against_index, read_index
from magmerge.core.errors import CheckpointError, no_such_model
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint
else:
    Model: TypeAlias = Any

TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
SUFFIXES = TORCH_SUFFIXES | {".safetensors"}
NO_WEIGHTS = "no .safetensors or .bin file"
NAMES = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")


def open_checkpoint(model: Model) -> Checkpoint:
    """Open a model without reading its tensors.

    `model` is a folder or file path, a mapping from names to tensors, a torch module, or a
    checkpoint. Raises CheckpointError, with the remedy, for anything missing, corrupt or unsafe.
    """
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
    checkpoint = _open_pipeline(folder) or _open_weights(folder)
    if checkpoint is not None:
        return checkpoint
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    raise CheckpointError(
        f"no checkpoint in this folder: it holds {', '.join(files) or NO_WEIGHTS}",
        source=folder,
        remedy="name the file itself, or a folder with model.safetensors or its index",
    )


def _open_pipeline(folder: Path) -> Checkpoint | None:
    """The models of a diffusion pipeline as one; None where the folder is none, or has none."""
    opened = {name: _open_weights(folder / name) for name in part_folders(folder)}
    parts = {name: model for name, model in opened.items() if model is not None}
    if not parts:
        return None
    from magmerge.checkpoints.pipeline_folder import PipelineFolder, check_parts

    check_parts(folder, parts)
    beside = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    note = f"{folder} is read as a pipeline; beside its parts lies {', '.join(beside)}"
    return PipelineFolder(str(folder), folder, parts, notes=[note] if beside else [])


def _open_weights(folder: Path) -> Checkpoint | None:
    """The folder's one checkpoint; None where it has none, or several."""
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
    # The index of a variant: model.safetensors.index.fp16.json.
    indices = list(folder.glob("*.safetensors.index.*.json"))
    return _open_index(indices[0], str(folder)) if len(indices) == 1 else None


def _open_index(index: Path, source: str) -> Checkpoint:
    shards, weight_map = read_index(index)
    checkpoint = _open_files(shards, source, index.parent)
    check_against_index(checkpoint, weight_map)
    return checkpoint


def _open_files(files: list[Path], source: str, folder: Path | None) -> Checkpoint:
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsCheckpoint(files, source, folder)
    return pickles.open_torch(files, source, folder)
