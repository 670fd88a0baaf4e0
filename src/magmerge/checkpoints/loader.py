"""From what a user names (a folder, a file, a mapping, a module) to a checkpoint or an expert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from magmerge.checkpoints import adapters, clip
from magmerge.checkpoints.adapters.formats.keys import is_adapter_file
from magmerge.checkpoints.adapters.formats.lora_config import CONFIG
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint, check_against_index, read_index
from magmerge.checkpoints.views import RenamedCheckpoint
from magmerge.core.errors import CheckpointError, no_such_model
from magmerge.core.models import Checkpoint, Expert

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint
else:
    Model: TypeAlias = Any

TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
BASE = "base"
NAMES = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")


def open_checkpoint(model: Model) -> Checkpoint:
    """Open a model without reading its tensors.

    `model` is a folder or file path, a mapping from names to tensors, a torch module, or a
    checkpoint. Raises CheckpointError, with the remedy, for anything missing, corrupt or unsafe.
    """
    if isinstance(model, str | Path):
        try:
            return _open_path(_named_path(model))
        except OSError as error:
            raise CheckpointError(
                f"cannot be read: {error.strerror}", source=model, remedy="check its permissions"
            ) from error
    if isinstance(model, Mapping):
        from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint

        return MemoryCheckpoint(model)
    if hasattr(model, "specs") and hasattr(model, "read"):
        return cast("Checkpoint", model)
    if hasattr(model, "state_dict"):
        from magmerge.checkpoints.memory_checkpoint import from_module

        return from_module(cast("nn.Module", model))
    raise CheckpointError(
        f"a {type(model).__name__} is no model",
        remedy="give a folder, a file, a mapping from names to tensors, or a torch module",
    )


def open_expert(name: str, model: Model, base: Checkpoint | None) -> Expert:
    """Open one expert: a whole model, or a LoRA adapter as task vectors on `base`."""
    in_parts = isinstance(model, str | Path) and _adapts_parts(Path(model))
    if hasattr(model, "named_modules"):
        from magmerge.checkpoints.memory_checkpoint import from_expert

        # One that PEFT has wrapped counts with what its adapter adds.
        model = from_expert(cast("nn.Module", model))
    checkpoint = None if in_parts else open_checkpoint(model)
    if checkpoint is not None and not is_adapter(checkpoint):
        from magmerge.checkpoints.whole_expert import FullExpert

        return FullExpert(name, checkpoint if base is None else align(checkpoint, base))
    if not isinstance(model, str | Path):
        raise CheckpointError(
            "it holds the factors of an adapter, and no file says how they are scaled",
            source=None if checkpoint is None else checkpoint.source,
            remedy="give the adapter's file, or its folder with adapter_config.json",
        )
    if base is None:
        raise CheckpointError(
            "an adapter is a change of a base model, and no base is given",
            source=model,
            remedy="name the base with --base (base=)",
        )
    return adapters.AdapterExpert(name, adapters.open_adapter(model), base)


def open_whole(role: str, model: Model) -> Checkpoint:
    """Open a base or a merged model, which cannot be an adapter.

    Of a base that PEFT has wrapped it is the model within.
    """
    if role != BASE and hasattr(model, "named_modules"):
        from magmerge.checkpoints.memory_checkpoint import wrapped_layers

        if wrapped_layers(cast("nn.Module", model)):
            raise CheckpointError(
                f"PEFT has wrapped it, and the {role} must be a plain model",
                source=f"a {type(model).__name__} in memory",
                remedy="pass model.merge_and_unload()",
            )
    checkpoint = open_checkpoint(model)
    if is_adapter(checkpoint):
        raise CheckpointError(
            f"it is a LoRA adapter, and the {role} must be a whole model",
            source=checkpoint.source,
            remedy="give the adapter as an expert, and the model that it was trained on as base",
        )
    return checkpoint


def align(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` under the base's names, where one of them wraps the model once more.

    A classifier's bert.encoder... becomes the bare encoder's encoder..., or the other way round,
    if that matches more of the base's names than the names as they are. So does a CLIP model of
    another family of names. Other names stay.
    """
    best, matched = checkpoint, len(set(checkpoint.specs) & set(base.specs))
    for wrapper in sorted({name.partition(".")[0] for name in (*checkpoint.specs, *base.specs)}):
        inner = {name: name.removeprefix(f"{wrapper}.") for name in checkpoint.specs}
        outer = {name: f"{wrapper}.{name}" for name in checkpoint.specs}
        for renamed in (inner, outer):
            names = {new if new in base.specs else old: old for old, new in renamed.items()}
            hits = len(set(names) & set(base.specs))
            if len(names) == len(renamed) and hits > matched:
                best, matched = RenamedCheckpoint(checkpoint, names), hits
    if matched < len(base.specs):
        other = clip.aligned(checkpoint, base)
        if other is not None and len(set(other.specs) & set(base.specs)) > matched:
            return other
    return best


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
    return _adapts_parts(_named_path(model)) or is_adapter(open_checkpoint(model))


def _adapts_parts(folder: Path) -> bool:
    """Whether it is a folder of PEFT's folders, one for each model of a diffusion pipeline."""
    return not (folder / CONFIG).is_file() and any(
        (folder / component / CONFIG).is_file() for component in COMPONENTS
    )


def _named_path(model: str | Path) -> Path:
    if str(model) == "":
        raise CheckpointError("a model's path is empty", remedy="name a folder or a file")
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
    from magmerge.checkpoints.torch_pickle import open_torch

    return open_torch(files, source, folder)
