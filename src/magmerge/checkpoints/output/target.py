"""Whether a result may be written to a place: it is free or may be replaced, and has room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magmerge.checkpoints.output.own_files import (
    CARD,
    FACTORS,
    RECIPE,
    RECORD,
    REPORT,
    check_replaceable,
    is_own_record,
    not_own,
    output_error,
    tells,
)
from magmerge.core.dtypes import spoken_size

UNWRITTEN = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf"})
TAKEN, REPLACE = "it exists already", "pass --yes (overwrite=True) to replace it"
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
        if path.is_symlink() or ".." in path.parts:
            path = real_path(path)
        target = cls(path, single, path.name if single else weights, frozenset(), overwrite, resume)
        beside = {target.named(name) for name in (RECORD, RECIPE, REPORT)}
        folders = () if single else (CARD, FACTORS)
        target = replace(target, own=frozenset({*own, *beside, *folders}))
        if path.suffix in UNWRITTEN:
            problem = f"magmerge writes no {path.suffix} files"
            raise output_error(path, problem, "name a folder, or a file ending in .safetensors")
        try:
            check_apart(path, inputs)
            if single and path.is_dir():
                raise output_error(path, "it is a folder", "name a file, or drop the suffix")
            if not single and path.is_file():
                remedy = "name a folder, or a file ending in .safetensors"
                raise output_error(path, "it is a file", remedy)
            target.check_free(target.own)
        except OSError as error:
            problem = f"cannot be used: {error.strerror}"
            raise output_error(path, problem, "choose another output") from error
        target.check_siblings(beside)
        return target

    def named(self, name: str) -> str:
        """A file beside the tensors, from the target's folder: FILE, or STEM.FILE beside a single
        file.
        """
        return f"{self.path.stem}.{name}" if self.single else name

    @property
    def record(self) -> Path:
        """The record beside a single file."""
        return self.path.parent / f"{self.path.stem}.{RECORD}"

    def check_siblings(self, names: Iterable[str]) -> None:
        """OutputError where a file beside a single one may not be written."""
        for file in [self.path.parent / name for name in names] if self.single else ():
            if file.is_dir():
                problem = "it is a folder, and the result needs a file there"
                raise output_error(file, problem, "move it away, or choose another output")
            if not file.exists():
                continue
            unknown = file.name.endswith(f".{RECIPE}") and not tells(self.record, RECIPE)
            if unknown or not is_own_record(self.record):
                raise not_own(file)
            if not self.overwrite:
                raise output_error(file, TAKEN, REPLACE)

    def check_free(self, own: Collection[str]) -> None:
        """OutputError if something is there that may not be replaced; `own` are our files."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if self.path.is_dir():
            check_replaceable(self.path, own)
        if not self.overwrite:
            raise output_error(self.path, TAKEN, REPLACE)


def check_space(target: Path, size: int) -> None:
    """OutputError if the disk that will hold `target` has no room for `size` bytes."""
    place = next(parent for parent in real_path(target).parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size + RESERVE:
        needs = f"{spoken_size(size)} and {spoken_size(RESERVE)} to spare"
        problem = f"the result needs {needs}, but {spoken_size(free)} are free there"
        remedy = "free some space, choose another disk, or a smaller --dtype"
        raise output_error(target, problem, remedy)


def real_path(path: Path) -> Path:
    """Where a path leads, its links followed; OutputError where they lead in a circle."""
    real = Path(os.path.realpath(path))
    if any(part.is_symlink() for part in (real, *real.parents)):
        raise output_error(path, "its links lead in a circle", "name another output")
    return real


def check_apart(target: Path, inputs: Iterable[Path]) -> None:
    """OutputError where `target` is the current folder or one of `inputs`, or holds it."""
    real = real_path(target)
    if real == Path.cwd():
        raise output_error(target, "it is the current folder", "name a folder of its own")
    for path in inputs:
        # A link in a download cache is an input as well as the file that it leads to.
        for place in (real_path(path), real_path(path.parent) / path.name):
            if real == place or real in place.parents:
                problem = f"it is the input {path}, or holds it"
                raise output_error(target, problem, "choose an output apart from all inputs")


def check_outside(target: Path, folders: Iterable[Path]) -> None:
    """OutputError where `target` lies in one of `folders`, which are an input each."""
    real = real_path(target)
    for folder in folders:
        if real_path(folder) in real.parents:
            problem = f"it lies in the folder of the input {folder}"
            raise output_error(target, problem, "choose an output apart from all inputs")


def check_apart_and_free(target: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """OutputError where `target` is an input or in one, or is there and may not be replaced."""
    check_apart(target, inputs)
    check_outside(target, filter(Path.is_dir, inputs))
    taken = target.is_dir() and any(target.iterdir())
    if not overwrite and (taken or target.is_file()):
        raise output_error(target, TAKEN, REPLACE)
