"""Whether a result may be written to a place: it is free or may be replaced, and has room."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from magmerge.checkpoints.output.own_files import (
    RECIPE,
    RECORD,
    REPORT,
    check_replaceable,
    is_own_record,
    not_own,
    tells,
)
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import OutputError

UNWRITTEN = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf"})
RESERVE = 16 << 20
"""Bytes left free on the disk beside the result's own."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: a folder, or one file; whether what is there may be replaced, and what a
    killed run left may be gone on with. `weights` is the file of the tensors, from whose name those
    of several are made; `own` are the files that its folder may get, but for shards.
    """

    path: Path
    single: bool
    weights: str
    own: frozenset[str] = frozenset()
    overwrite: bool = False
    resume: bool = False

    @classmethod
    def at(
        cls,
        out: str | Path,
        *,
        single: bool,
        weights: str,
        own: Collection[str],
        inputs: Iterable[Path],
        overwrite: bool = False,
        resume: bool = False,
    ) -> Target:
        """The target, checked: OutputError where it is taken or is one of `inputs`."""
        path = Path(out)
        # A link is followed once, here: what is renamed in the end is what it leads to.
        indirect = path.is_symlink() or ".." in path.parts
        path = path.resolve() if indirect else path
        target = cls(path, single, path.name if single else weights, frozenset(), overwrite, resume)
        beside = {target.named(name) for name in (RECORD, RECIPE, REPORT)}
        target = replace(target, own=frozenset({*own, *beside}))
        check_target(path, inputs, single=single, overwrite=overwrite, own=target.own)
        if single:
            check_siblings(path, [path.parent / name for name in beside], overwrite=overwrite)
        return target

    def named(self, name: str) -> str:
        """What a file beside the tensors is called, from the target's folder: FILE, or STEM.FILE
        beside a single file.
        """
        return f"{self.path.stem}.{name}" if self.single else name


def check_target(
    target: Path,
    inputs: Iterable[Path],
    *,
    single: bool,
    overwrite: bool,
    own: Collection[str] = (),
) -> None:
    """OutputError unless `target` is free, or may be replaced: no input, asked for, and nobody's.

    `own` are the files that a folder will have, by their paths from it.
    """
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
        check_free(target, overwrite=overwrite, own=own)
    except OSError as error:
        raise OutputError(
            f"cannot be used: {error.strerror}", source=target, remedy="choose another output"
        ) from error


def check_siblings(target: Path, files: Iterable[Path], *, overwrite: bool) -> None:
    """OutputError where what belongs beside the single file `target` cannot be written there.

    A folder is there, or a file that is not to be replaced, or one that is not magmerge's.
    """
    for file in files:
        if file.is_dir():
            raise OutputError(
                "it is a folder, and the result needs a file there",
                source=file,
                remedy="move it away, or choose another output",
            )
        if not file.exists():
            continue
        record = record_beside(target)
        if not is_own_record(record) or (
            file.name.endswith(f".{RECIPE}") and not tells(record, RECIPE)
        ):
            raise not_own(file)
        if not overwrite:
            raise _taken(file)


def record_beside(target: Path) -> Path:
    """The record of the single file `target`."""
    return target.parent / f"{target.stem}.magmerge.json"


def check_free(target: Path, *, overwrite: bool, own: Collection[str]) -> None:
    """OutputError if something is at `target` that is not to be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.is_dir():
        check_replaceable(target, own)
    if not overwrite:
        raise _taken(target)


def _taken(path: Path) -> OutputError:
    return OutputError(
        "it exists already", source=path, remedy="pass --yes (overwrite=True) to replace it"
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


def check_apart(target: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """OutputError where `target` is an input, or is there and may not be replaced."""
    _check_apart(target, inputs)
    taken = target.is_dir() and any(target.iterdir())
    if not overwrite and (taken or target.is_file()):
        raise _taken(target)


def _check_apart(target: Path, inputs: Iterable[Path]) -> None:
    real = target.resolve()
    if real == Path.cwd():
        raise OutputError(
            "it is the current folder", source=target, remedy="name a folder of its own"
        )
    for path in inputs:
        # A link in a download cache is an input as well as the file that it leads to.
        for place in (path.resolve(), path.parent.resolve() / path.name):
            if real == place or real in place.parents:
                raise OutputError(
                    f"it is the input {path}, or holds it",
                    source=target,
                    remedy="choose an output apart from all inputs",
                )
