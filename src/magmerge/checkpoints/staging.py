"""A place beside the target where the result grows, renamed to the target when it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from magmerge.dtypes import spoken_size
from magmerge.errors import OutputError

LOCK = ".lock"
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "*.index.json", "magmerge.json")
RESERVE = 16 << 20
"""Bytes left free on the disk beside the result's own."""


class Staging:
    """The unfinished result, under a hidden name beside `target`.

    A lock tells a run at work from the remains of a killed one, which are cleared away. `target`
    is a folder, or one file if `single`.
    """

    def __init__(self, target: Path, *, single: bool) -> None:
        self.target = target
        self.single = single
        self.folder = target.parent / f".{target.name}.magmerge-partial"
        self._old = target.parent / f".{target.name}.magmerge-old"
        self._lock: int | None = None

    def __enter__(self) -> Staging:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise OutputError(
                f"cannot be written: {error.strerror}",
                source=self.target,
                remedy="choose a folder that you may write to",
            ) from error
        self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def publish(self, siblings: Iterable[str] = ()) -> None:
        """Give the finished files their final names: first `siblings` of a single file, then it."""
        if self.single:
            for name in (*siblings, self.target.name):
                os.replace(self.folder / name, self.target.parent / name)
        else:
            (self.folder / LOCK).unlink()
            if self.target.is_dir() and any(self.target.iterdir()):
                os.rename(self.target, self._old)
            os.rename(self.folder, self.target)
            shutil.rmtree(self._old, ignore_errors=True)
        _sync(self.target.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def _acquire(self) -> None:
        self.folder.mkdir(exist_ok=True)
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have published or removed this very lock since it was opened.
            mine = os.fstat(lock).st_ino == os.stat(self.folder / LOCK).st_ino
        except OSError:
            mine = False
        if not mine:
            os.close(lock)
            raise OutputError(
                "another magmerge run is writing it now",
                source=self.target,
                remedy="wait until that run has ended, or choose another output",
            )
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self) -> None:
        """Remove what a killed run left; bring back an output that it had moved aside."""
        for entry in self.folder.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if self._old.exists():
            if self.target.exists():
                shutil.rmtree(self._old, ignore_errors=True)
            else:
                os.rename(self._old, self.target)


def check_target(target: Path, inputs: Iterable[Path], *, single: bool, overwrite: bool) -> None:
    """OutputError unless `target` is free, or may be replaced: a model, not an input, and asked."""
    real = target.resolve()
    for path in inputs:
        given = path.resolve()
        if real == given or real in given.parents:
            raise OutputError(
                f"it is the input {path}, or holds it",
                source=target,
                remedy="choose an output apart from all inputs",
            )
    if single and target.is_dir():
        raise OutputError("it is a folder", source=target, remedy="name a file, or drop the suffix")
    if not single and target.is_file():
        raise OutputError(
            "it is a file", source=target, remedy="name a folder, or a file ending in .safetensors"
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise OutputError("it exists already", source=target, remedy="pass --yes to replace it")
    if target.is_dir() and not any(any(target.glob(pattern)) for pattern in MODEL_FILES):
        raise OutputError(
            "it holds files, but no model, and is not replaced even with --yes",
            source=target,
            remedy="choose another output, or empty the folder yourself",
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


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
