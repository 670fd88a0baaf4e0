"""The folder of a run: it must be its own, and what it holds must be of the same settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magmerge.digests import DigestMemory
from magmerge.errors import OutputError
from magmerge.reproduction.asked import Asked
from magmerge.reproduction.inputs import Inputs
from magmerge.reproduction.ledger import NAME, is_ledger

TINY, MARK = "tiny", "made.json"
SMALL = ("*.json", "*.txt", "*.model")
"""Files beside the base's weights that decide what a model makes of texts and images."""


def check_place(asked: Asked) -> None:
    """OutputError where the folder holds other things, or models and data are in its way."""
    folder = asked.folder.resolve()
    for given in (asked.inputs, asked.data):
        if given is not None and _overlap(given.resolve(), folder):
            raise OutputError(
                f"it lies together with {given}, and files there might be replaced",
                source=asked.folder,
                remedy="name an output folder of its own",
            )
    if folder.is_file():
        raise OutputError("it is a file", source=asked.folder, remedy="name a folder")
    own = is_ledger(folder / NAME) or (folder / TINY / MARK).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not own:
        raise OutputError(
            f"it holds other things and no {NAME} of magmerge's, so nothing is written there",
            source=asked.folder,
            remedy="name a new or an empty folder",
        )


def settings_of(asked: Asked, found: Inputs) -> dict[str, Any]:
    """All that scores depend on: a run with other settings is another run."""
    memory = DigestMemory()
    weights = {
        role: sorted(memory.digest(file) for file in _weights(path))
        for role, path in {"base": found.base, **found.experts}.items()
    }
    beside = sorted(file for pattern in SMALL for file in found.base.glob(pattern))
    small = [[file.name, memory.digest(file)] for file in beside]
    memory.save()
    own_generic = asked.tiny and asked.pipeline.kind != "vision"
    return {
        "pipeline": asked.pipeline.name,
        "tasks": list(asked.tasks),
        "samples": asked.samples,
        "alpha": asked.alpha,
        "generic": None if own_generic else asked.generic,
        "generic_samples": asked.generic_samples,
        "params": {method: dict(values) for method, values in asked.params.items()},
        "dtype": asked.machine.dtype or "float32",
        "data": None if asked.data is None else {t: _listing(asked.data, t) for t in asked.tasks},
        "inputs": weights,
        "base_files": small,
    }


def _listing(data: Path, task: str) -> str:
    """A digest of names, sizes and times of all files of a task, or of all files there."""
    place = data / task if (data / task).is_dir() else data
    lines = []
    for file in _files(place):
        found = file.stat()
        lines.append(f"{file.relative_to(place)} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _files(place: Path) -> Iterator[Path]:
    yield from sorted(path for path in place.rglob("*") if path.is_file())


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents
