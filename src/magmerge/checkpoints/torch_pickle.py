"""torch files (.bin, .pt, .pth): tensors only, never anything that would run code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magmerge.checkpoints.memory import MemoryCheckpoint
from magmerge.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs put the state of the model."""


def open_torch(files: Iterable[Path], source: str, folder: Path | None = None) -> MemoryCheckpoint:
    """The tensors of torch files, mapped lazily where the file's format allows it."""
    files = tuple(files)
    tensors: dict[str, Any] = {}
    for file in files:
        for name, tensor in load_tensors(file).items():
            if name in tensors:
                raise CheckpointError(
                    "it is also in another file of this checkpoint",
                    source=file,
                    tensor=name,
                    remedy="remove the file that does not belong to this checkpoint",
                )
            tensors[name] = tensor
    return MemoryCheckpoint(tensors, source, folder=folder, files=files)


def load_tensors(file: Path) -> dict[str, Any]:
    """The state dictionary of one torch file; CheckpointError if it holds anything but tensors."""
    content = _load(file)
    if isinstance(content, Mapping):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        content = content[inner[0]] if inner else content
    if not isinstance(content, Mapping):
        raise _refusal(file, f"it holds a {type(content).__name__}, not a state dictionary")
    return {str(name): tensor for name, tensor in _only_tensors(file, content)}


def _only_tensors(file: Path, content: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    import torch

    odd = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd or not content:
        what = f"these keys hold no tensor: {', '.join(odd)}" if odd else "it is empty"
        raise _refusal(file, what)
    return content.items()


def _load(file: Path) -> Any:
    import torch

    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Only files of the zip format can be mapped; the older format is read whole.
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(file, f"reading it would run code: {_culprit(str(error))}") from error
    except Exception as error:
        raise _refusal(file, f"it cannot be read: {type(error).__name__}: {error}") from error


def _culprit(message: str) -> str:
    """The part of torch's long message that says what the file asks for."""
    name = re.search(r"(?:global|GLOBAL|class|type)\W+(?:GLOBAL )?([\w.]+\.[\w.]+)", message)
    found = re.search(r"WeightsUnpickler error: ([^\n]+)", message)
    if name:
        return name[1]
    return found[1].partition("Please")[0].strip() if found else "it is no plain torch file"


def _refusal(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"refused: {problem}",
        source=file,
        remedy="save the model as safetensors, or its bare state_dict() with torch.save",
    )
