"""SHA-256 of files, remembered while a file stays as it is, and stamps that tell whether it did."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from magmerge.core.machine import user_cache
from magmerge.core.whole_file import replace_whole

T = TypeVar("T")
REMEMBERED = 4096
"""Values that a file of them holds, the latest ones."""
SHA256 = re.compile("[0-9a-f]{64}")
SETTLED = 2.0
"""Seconds after its last change from which a file's time tells whether it was changed again."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Memory(Generic[T]):
    """What is known by key, in the small file `path`, None for none. Where that cannot be read or
    written, or a value in it is not `sound`, nothing is known.
    """

    def __init__(self, path: Path | None, sound: Callable[[Any], bool]) -> None:
        self.path = path
        self._known: dict[str, T] = {}
        with suppress(OSError, ValueError, RecursionError):
            content = None if path is None else json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and all(map(sound, content.values())):
                self._known = content

    def get(self, key: str | None) -> T | None:
        """What is known of a key; None is the key of what cannot be remembered."""
        return None if key is None else self._known.get(key)

    def put(self, key: str | None, value: T) -> None:
        """Remember it until `save`."""
        if key is not None:
            self._known[key] = value

    def save(self) -> None:
        """Write what is known, the latest of it, in one step."""
        if self.path is None:
            return
        latest = dict(list(self._known.items())[-REMEMBERED:])
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(self.path, json.dumps(latest))


class DigestMemory(Memory[str]):
    """Digests by a file's device, inode, size and times, so that it is read for its digest once."""

    def __init__(self, path: Path | None = None) -> None:
        path = default_path() if path is None else path
        super().__init__(path, lambda value: isinstance(value, str) and len(value) == 64)

    def digest(self, file: Path) -> str:
        """The file's digest, computed where it is not known."""
        key = stamp(file)
        if key == getattr(file, "sha256", None):
            return key
        known = self.get(key)
        if known is None:
            known = file_digest(file)
            # What changed meanwhile, or a moment ago, might change again within the same time.
            if key == stamp(file) and time.time() - file.stat().st_ctime > SETTLED:
                self.put(key, known)
        return known


def default_path() -> Path | None:
    """Where digests are remembered; None for a user without a home."""
    folder = user_cache()
    return None if folder is None else folder / "digests.json"


def stamp(file: Path) -> str:
    """What changes when the file does: device, inode, size and times of change; of a file that is
    read elsewhere the digest that is told of it.
    """
    told: str | None = getattr(file, "sha256", None)
    return stamp_of(file.stat()) if told is None else told


def stamp_of(state: os.stat_result) -> str:
    """The same of a file that is here, or is open."""
    times = state.st_mtime_ns, state.st_ctime_ns
    return ":".join(map(str, (state.st_dev, state.st_ino, state.st_size, *times)))


def told_digest(file: Path) -> str | None:
    """A file's SHA-256 where somebody tells it, and no byte is read for it here: the hub, of what
    is read there; its cache, whose files have these names. None for other files.
    """
    told: str | None = getattr(file, "sha256", None)
    if told is not None or not file.is_symlink():
        return told
    blob = file.resolve()
    cached = blob.parent.name == "blobs" and blob.parents[1].name.startswith("models--")
    return blob.name if cached and SHA256.fullmatch(blob.name) else None
