"""Whether a result may be written to a place: it is free or may be replaced, and has room."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from magmerge.adapters.names.components import COMPONENTS
from magmerge.checkpoints.lora import CONFIG
from magmerge.dtypes import spoken_size
from magmerge.errors import OutputError

OWN = "magmerge.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
PART = re.compile(r"\d+_\w+")
"""Subfolders of sentence encoders, which belong to a model."""
UNWRITTEN = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf"})
RESERVE = 16 << 20
"""Bytes left free on the disk beside the result's own."""


def check_target(target: Path, inputs: Iterable[Path], *, single: bool, overwrite: bool) -> None:
    """OutputError unless `target` is free, or may be replaced: a model, not an input, and asked."""
    if target.suffix in UNWRITTEN:
        raise OutputError(
            f"magmerge writes no {target.suffix} files",
            source=target,
            remedy="name a folder, or a file ending in .safetensors",
        )
    try:
        _check_apart(target, inputs)
        if single and target.is_dir():
            raise OutputError(
                "it is a folder", source=target, remedy="name a file, or drop the suffix"
            )
        if not single and target.is_file():
            raise OutputError(
                "it is a file",
                source=target,
                remedy="name a folder, or a file ending in .safetensors",
            )
        check_free(target, overwrite=overwrite)
    except OSError as error:
        raise OutputError(
            f"cannot be used: {error.strerror}", source=target, remedy="choose another output"
        ) from error


def check_siblings(files: Iterable[Path]) -> None:
    """OutputError where a folder stands in the place of a file that belongs beside a single one."""
    for file in files:
        if file.is_dir():
            raise OutputError(
                "it is a folder, and the result needs a file there",
                source=file,
                remedy="move it away, or choose another output",
            )


def check_free(target: Path, *, overwrite: bool) -> None:
    """OutputError if something is at `target` that is not to be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.is_dir() and not _is_model(target):
        raise OutputError(
            "it holds other things than a model, so it is never replaced",
            source=target,
            remedy="choose another output, or empty the folder yourself",
        )
    if not overwrite:
        raise OutputError(
            "it exists already", source=target, remedy="pass --yes (overwrite=True) to replace it"
        )


def check_space(target: Path, size: int) -> None:
    """OutputError if the disk that will hold `target` has no room for `size` bytes."""
    place = next(parent for parent in target.resolve().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size + RESERVE:
        raise OutputError(
            f"the result needs {spoken_size(size)}, but {spoken_size(free)} are free there",
            source=target,
            remedy="free some space, choose another disk, or a smaller --dtype",
        )


def _check_apart(target: Path, inputs: Iterable[Path]) -> None:
    real = target.resolve()
    if real == Path.cwd():
        raise OutputError(
            "it is the current folder", source=target, remedy="name a folder of its own"
        )
    for path in inputs:
        # A link in a download cache is an input as well as the file that it leads to.
        for given in (path.resolve(), path.parent.resolve() / path.name):
            if real == given or real in given.parents:
                raise OutputError(
                    f"it is the input {path}, or holds it",
                    source=target,
                    remedy="choose an output apart from all inputs",
                )


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model and nothing that is none: no subfolder of another kind."""
    parts = [entry for entry in folder.iterdir() if entry.is_dir()]
    adapters = [entry for entry in parts if _is_adapter_part(entry)]
    if any(entry not in adapters and not PART.fullmatch(entry.name) for entry in parts):
        return False
    weights = any(any(folder.glob(pattern)) for pattern in WEIGHTS)
    return (folder / OWN).is_file() or weights or bool(adapters)


def _is_adapter_part(folder: Path) -> bool:
    """Whether it is PEFT's folder for one model of a diffusion pipeline, and no more."""
    return (
        folder.name in COMPONENTS
        and (folder / CONFIG).is_file()
        and not any(entry.is_dir() for entry in folder.iterdir())
    )
