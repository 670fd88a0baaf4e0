"""A large file of the hub into its library's cache by ranges, gone on with after a kill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from magmerge.checkpoints.hub.cache import Remote, folder_of, repository
from magmerge.checkpoints.hub.remote_file import RemoteFile
from magmerge.core.errors import CheckpointError
from magmerge.core.file_system import lock_when_free
from magmerge.core.model_strings import Part

LENGTH = 16 << 20
"""Bytes of one range."""
PARTIAL = ".magmerge-partial"


def fetch_by_ranges(part: Part, name: str, file: Remote, add: Callable[[float], None]) -> None:
    """The file `name` of a model at a commit, which `add` hears the bytes of; what was begun is
    gone on with. CheckpointError where its SHA-256 is not the one that the hub tells.
    """
    blob = repository(part) / "blobs" / str(file.sha256)
    place = folder_of(part) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.is_file():
        partial = blob.with_name(f"{blob.name}{PARTIAL}")
        with partial.open("a+b") as stream:
            lock_when_free(stream.fileno())
            # Another process may have been at it, and have finished.
            if not blob.is_file():
                _go_on(RemoteFile(part, name, file.size), stream, add)
                _check(partial, part, name, file)
                os.replace(partial, blob)
    if not place.is_file():
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))


def _go_on(remote: RemoteFile, stream: BinaryIO, add: Callable[[float], None]) -> None:
    begun = min(stream.seek(0, os.SEEK_END), remote.size)
    stream.truncate(begun)
    add(begun)
    while begun < remote.size:
        content = remote.read(begun, min(begun + LENGTH, remote.size))
        stream.write(content)
        stream.flush()
        begun += len(content)
        add(len(content))
    os.fsync(stream.fileno())


def _check(partial: Path, part: Part, name: str, file: Remote) -> None:
    with partial.open("rb") as stream:
        digest: Any = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        partial.unlink()
        raise CheckpointError(
            f"{name} has come with other bytes than the hub tells (SHA-256)",
            source=part,
            remedy="run it again: the file is fetched anew",
        )


class SilentBar:
    """What the hub's library takes for a bar of one file."""

    total: int | None = None
    add: Callable[[float], None] | None = None

    def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
        self.update(initial)

    def update(self, count: float | None = 1) -> None:
        """More bytes."""
        if self.add is not None:
            self.add(count or 0)

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "update_transfer":
            raise AttributeError(name)
        return lambda *_, **__: None
