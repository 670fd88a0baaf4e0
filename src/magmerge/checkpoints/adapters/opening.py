"""From a file or folder to an adapter, in whatever format it is; only headers are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magmerge.checkpoints.adapters.formats.diffusers import read_diffusers
from magmerge.checkpoints.adapters.formats.kohya import read_kohya
from magmerge.checkpoints.adapters.formats.others import with_other_weights
from magmerge.checkpoints.adapters.formats.peft import read_peft
from magmerge.checkpoints.adapters.formats.sorting import is_adapter_file, style_of
from magmerge.checkpoints.adapters.formats.stored import StoredAdapter, StoredModule, StoredTensor
from magmerge.checkpoints.adapters.names.components import COMPONENTS, canonical, is_text
from magmerge.checkpoints.adapters.nouns import Adapter
from magmerge.checkpoints.lora import CONFIG, read_config
from magmerge.checkpoints.opening import open_checkpoint
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint

__all__ = ["is_adapter_file", "open_adapter"]

NAMES = ("adapter_model.safetensors", "adapter_model.bin")


def open_adapter(path: str | Path) -> Adapter:
    """Open an adapter without reading its factors.

    `path` is a file, or PEFT's folder with an adapter_config.json, or a folder of such folders for
    the models of a diffusion pipeline. What the format is, keys and header tell, never the file's
    name. AdapterError, with the key and the remedy, for anything that is no sound adapter.
    """
    found = _opened(path)
    for name in (*found.modules, *found.whole):
        if not name.isprintable():
            raise AdapterError(
                "a name with control characters", source=found.source, tensor=repr(name)[1:-1],
                remedy="do not use this file: nothing that trains adapters writes such names",
            )  # fmt: skip
    return found


def _opened(path: str | Path) -> StoredAdapter:
    place = Path(path)
    if not str(path) or not place.is_dir():
        return _open_file(path)
    if (place / CONFIG).is_file():
        return _open_peft(place)
    parts = [name for name in COMPONENTS if (place / name / CONFIG).is_file()]
    return _joined(place, parts) if parts else _open_file(place)


def _open_file(path: str | Path) -> StoredAdapter:
    checkpoint = open_checkpoint(path)
    metadata = read_metadata(checkpoint)
    style = style_of(checkpoint)
    if style in ("kohya", "comfy"):
        return read_kohya(checkpoint, metadata)
    if style == "peft":
        beside = checkpoint.files[0].parent
        if not (beside / CONFIG).is_file():
            raise AdapterError(
                f"its keys are PEFT's, and no {CONFIG} says how they are scaled",
                source=checkpoint.source,
                remedy=f"put the adapter's {CONFIG} beside the file",
            )
        return _with_config(checkpoint, beside)
    return read_diffusers(
        checkpoint, metadata, "diffusers" if style == "diffusers" else "diffusers_old"
    )


def _open_peft(folder: Path) -> StoredAdapter:
    file = next((folder / name for name in NAMES if (folder / name).is_file()), folder)
    return _with_config(open_checkpoint(file), folder)


def _with_config(checkpoint: Checkpoint, folder: Path) -> StoredAdapter:
    files = (*checkpoint.files, folder / CONFIG)
    found = read_peft(checkpoint, read_config(folder), files, read_metadata(checkpoint))
    return with_other_weights(found, folder)


def _joined(folder: Path, components: list[str]) -> StoredAdapter:
    """PEFT's folders of several models as one adapter; names begin with the folder's."""
    stored: dict[str, StoredModule] = {}
    replaced: dict[str, StoredTensor] = {}
    files: list[Path] = []
    config: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    for component in components:
        part = _open_peft(folder / component)
        for name, module in part.stored.items():
            own = f"{component}.{canonical(name) if is_text(component) else name}"
            stored[own] = dataclasses.replace(
                module, spec=dataclasses.replace(module.spec, name=own)
            )
        for name, tensor in part.replaced.items():
            own = f"{component}.{name}"
            replaced[own] = dataclasses.replace(
                tensor, spec=dataclasses.replace(tensor.spec, name=own)
            )
        files += part.files
        notes += part.notes
        config[component] = part.config
        metadata |= part.metadata
    return StoredAdapter(
        str(folder), tuple(files), "peft", stored, replaced, metadata, config, tuple(notes)
    )


def read_metadata(checkpoint: Checkpoint) -> Mapping[str, str]:
    """The entries of a safetensors header; none for other files."""
    if len(checkpoint.files) != 1 or checkpoint.files[0].suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(checkpoint.files[0], framework="numpy") as file:
        # Their order is by chance: sorted, so that equal runs give equal bytes.
        return dict(sorted((file.metadata() or {}).items()))
