"""From what a user names (a folder, a file, a mapping, a module) to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from magmerge.checkpoints import pickles
from magmerge.checkpoints.adapters.formats.keys import CONFIG, is_adapter_file
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.donor import part_folders
from magmerge.checkpoints.kinds import check_gathered
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint, from_module
from magmerge.checkpoints.open_files import read_errors
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint, check_against_index, read_index
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, no_such_model
from magmerge.core.lazy import load
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from magmerge.core.model_strings import ModelString

    Model: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint
else:
    Model: TypeAlias = Any

KINDS = {
    ".gguf": "magmerge.checkpoints.gguf.gguf_checkpoint:open_gguf",
    ".metadata": "magmerge.checkpoints.distributed:open_distributed",
}
"""What opens a file by its ending, where it is neither safetensors nor of torch."""
TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
TARS = (".pt.tar", ".pth.tar", ".ckpt.tar")
"""Endings of torch files that are no tar files."""
READ = frozenset({".safetensors", *TORCH_SUFFIXES, *KINDS})
SUFFIXES = (".safetensors", ".bin")
NAMES = (
    "model", "diffusion_pytorch_model", "adapter_model", "pytorch_model", "pytorch_model_fsdp",
)  # fmt: skip
"""What the files of a model are called in its folder, single or with an index beside them."""
AVERAGE = "model_ema."
"""How the names of averages begin in single files of Stable Diffusion."""


class Files(NamedTuple):
    """A checkpoint's files, or its index; the folder of its config; what a reader should know; and
    whether they are the average of its weights.
    """

    paths: Sequence[Path]
    folder: Path | None
    listing: Path | None = None
    notes: tuple[str, ...] = ()
    averaged: bool = False


def open_checkpoint(model: Model, weights: str | None = None) -> Checkpoint:
    """Open a model without reading its tensors, which are seen as what they stand for: weights of 8
    bits times their scales, and MXFP4.

    `model` is a folder or file path, org/name of the hub, MODEL+ADAPTER, a mapping from names to
    tensors, a torch module, or a checkpoint. Where it holds weights and their moving average,
    `weights` "model" or "ema" says which; None: those that the program would load that wrote it.
    Raises CheckpointError, with the remedy, for anything missing, corrupt or unsafe.
    """
    checkpoint = open_stored(model, weights)
    if checkpoint is model:
        return checkpoint
    check_gathered(checkpoint)
    if weights is not None or any(name.startswith(AVERAGE) for name in checkpoint.specs):
        checkpoint = load("magmerge.checkpoints.averages:chosen")(checkpoint, weights)
    if any(spec.dtype in dtypes.QUANTISED for spec in checkpoint.specs.values()):
        checkpoint = load("magmerge.checkpoints.float8:with_values")(checkpoint)
    if any(name.endswith("_blocks") for name in checkpoint.specs):
        checkpoint = load("magmerge.checkpoints.mxfp4:with_values")(checkpoint)
    return checkpoint


def with_notes(checkpoint: Any, notes: tuple[str, ...]) -> Checkpoint:
    """A checkpoint with what else its reader should know."""
    checkpoint.notes = (*notes, *checkpoint.notes)
    return cast("Checkpoint", checkpoint)


def open_stored(model: Model, weights: str | None = None) -> Checkpoint:
    """Open a model as `open_checkpoint` does, its tensors as they are stored."""
    if isinstance(model, str | Path):
        with read_errors(model):
            if _is_name(model):
                named: Checkpoint = load("magmerge.checkpoints.named:opened")(model, weights)
                return named
            return _open_path(place_of(model), weights)
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
    folder, files = checkpoint.folder, checkpoint.files
    named = bool(files) and all(file.name.startswith("adapter_model.") for file in files)
    if folder is not None and (folder / CONFIG).is_file():
        return named
    return (named and (files[0].parent / CONFIG).is_file()) or is_adapter_file(checkpoint)


def adapts(model: Model) -> bool:
    """Whether a model is an adapter's file or folder, or a folder of such."""
    if not isinstance(model, str | Path):
        return False
    return in_parts(model) or is_adapter(open_stored(model))


def in_parts(model: str | Path) -> bool:
    """Whether it names a folder of PEFT's folders, one for each model of a diffusion pipeline."""
    return not folds(model) and adapts_parts(located(place_of(model)))


def adapts_parts(folder: Path) -> bool:
    """Whether it is a folder of PEFT's folders, one for each model of a diffusion pipeline."""
    return not (folder / CONFIG).is_file() and any(
        (folder / component / CONFIG).is_file() for component in COMPONENTS
    )


def folds(model: str | Path) -> bool:
    """Whether a string names a model with an adapter folded in: MODEL+ADAPTER."""
    return "+" in str(model) and _is_name(model) and _parsed(str(model)).adapter is not None


def place_of(model: str | Path) -> Path:
    """Where the file or folder is that a model is named by, of the hub in its cache."""
    if _is_name(model):
        place: Path = load("magmerge.checkpoints.named:place_of")(model).folder
        return place
    if str(model) == "" or "\0" in str(model):
        _parsed(str(model))
    return Path(model)


def _is_name(model: str | Path) -> bool:
    """Whether it is no path, but may be read in another way."""
    if not isinstance(model, str) or lexists(model):
        return False
    named: bool = load("magmerge.core.model_strings:is_name")(model)
    return named


def _parsed(text: str) -> ModelString:
    parsed: ModelString = load("magmerge.core.model_strings:parse")(text)
    return parsed


def files_in(folder: Path, weights: str | None = None) -> Files:
    """The checkpoint in a folder; CheckpointError, with the remedy, where there is none."""
    single = _single(folder)
    if single is not None:
        return single
    files: Files = load("magmerge.checkpoints.folders:files_of")(folder, weights)
    return files


def located(path: Path) -> Path:
    """Where the model is that a path names: in a training's folder in the last checkpoint-N."""
    if not path.is_dir() or (path / CONFIG).is_file() or _single(path) is not None:
        return path
    last: Path = load("magmerge.checkpoints.folders:last_checkpoint")(path)
    return last


def located_note(path: Path) -> tuple[str, ...]:
    """That the model of a path is somewhere in it, for its notes."""
    place = located(path)
    return () if place == path else (f"{path} is a training's folder: {place.name} is taken",)


def _open_path(path: Path, weights: str | None) -> Checkpoint:
    if path.is_dir():
        pipeline = _open_pipeline(path, weights)
        if pipeline is not None:
            return pipeline
        return _open_files(files_in(located(path), weights), str(path), weights, located_note(path))
    if not path.is_file():
        raise no_such_model(path)
    if path.name.endswith(".index.json"):
        return _open_files(Files([], path.parent, path), str(path), weights)
    if path.suffix in (".pt", ".pth"):
        load("magmerge.checkpoints.folders:check_whole")(path)
    if _ending(path) in READ or path.name.endswith(TARS):
        # The folder's config tells what the tensors are, also where its one file is named.
        folder = path.parent if (path.parent / "config.json").is_file() else None
        return _open_files(Files([path], folder), str(path), weights)
    if path.suffix == ".distcp":
        raise CheckpointError(
            "it is one part of a distributed checkpoint",
            source=path,
            remedy=f"name its folder: {path.parent}",
        )
    raise CheckpointError(
        "no known kind of checkpoint",
        source=path,
        remedy="magmerge reads .safetensors, .gguf, and torch files named .bin, .pt, .pth, .ckpt, "
        ".pkl or .pth.tar",
    )


def _open_pipeline(folder: Path, weights: str | None) -> Checkpoint | None:
    """The models of a diffusion pipeline as one; None where the folder is none, or has none."""
    parts = {
        name: _open_files(files_in(folder / name, weights), str(folder / name), weights)
        for name in part_folders(folder)
        if any(file.suffix in READ for file in (folder / name).iterdir())
    }
    if not parts:
        return None
    opened: Checkpoint = load("magmerge.checkpoints.pipeline_folder:opened")(folder, parts)
    return opened


def _ending(path: Path) -> str:
    """What tells a file's kind; a name that is an ending alone has none for Python."""
    return path.suffix or path.name


def _single(folder: Path) -> Files | None:
    """A file of a known name, or the index of such."""
    for suffix in SUFFIXES:
        for name in NAMES:
            single, index = folder / f"{name}{suffix}", folder / f"{name}{suffix}.index.json"
            if single.is_file() and index.is_file():
                raise CheckpointError(
                    f"it holds both {single.name} and {index.name}",
                    source=folder,
                    remedy="remove the one that is left over from another save",
                )
            if index.is_file():
                return Files([], folder, index)
            if single.is_file():
                return Files([single], folder)
    return None


def _open_files(
    files: Files, source: str, weights: str | None, notes: tuple[str, ...] = ()
) -> Checkpoint:
    paths, weight_map = files.paths, None
    if files.listing is not None:
        paths, weight_map = read_index(files.listing)
    endings = {_ending(path) for path in paths}
    opened: Any
    if endings == {".safetensors"}:
        opened = SafetensorsCheckpoint(paths, source, files.folder)
    elif endings <= KINDS.keys() and len(paths) == 1:
        opened = load(KINDS[_ending(paths[0])])(paths[0], source, files.folder, weights)
    else:
        opened = pickles.open_torch(paths, source, files.folder, weights)
    opened.averaged = files.averaged or getattr(opened, "averaged", False)
    opened.notes = (*notes, *files.notes, *opened.notes)
    if weight_map is not None:
        opened.notes = (*opened.notes, *check_against_index(opened, weight_map))
    return cast("Checkpoint", opened)
