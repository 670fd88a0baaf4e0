"""Head files: a task's last layer apart from the encoder, as `evaluate` reads it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


def save_head(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a head's tensors to a file, whole or not at all; OSError if it fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".magmerge-partial-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save(dict(tensors)))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def read_cached(path: Path, classes: int) -> dict[str, Tensor] | None:
    """A head as it was kept; None where there is none, or it is spoilt."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    weight = found.get("weight")
    sound = weight is not None and weight.dim() == 2 and len(weight) == classes
    return found if sound and bool(weight.isfinite().all()) else None  # type: ignore[union-attr]
