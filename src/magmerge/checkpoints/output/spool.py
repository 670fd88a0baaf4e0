"""Finished tensors whose place is not known yet, kept beside the result until all of them are."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.checkpoints.output.ledger import SPOOL
from magmerge.checkpoints.output.own_files import disk_errors
from magmerge.core.lazy import Tensor, load

HEAD, DIGEST = 8, 32
"""Bytes before each part: its length, and its SHA-256."""


class Kept(NamedTuple):
    """What was kept of one step: the JSON of what became of it, and its tensors by their names."""

    step: str
    outcome: Mapping[str, Any]
    tensors: dict[str, Tensor]


class Spool:
    """One part for each finished step, one after the other in one file of the staging folder."""

    def __init__(self, folder: Path, target: Path) -> None:
        self._path, self._target = folder / SPOOL, target
        self._lock = threading.Lock()

    def keep(self, step: str, outcome: bytes, tensors: Mapping[str, Tensor]) -> None:
        """The step is done, with this JSON of what became of it."""
        told = {"step": step, "outcome": outcome.decode()}
        content = load("safetensors.torch:save")(dict(tensors), told)
        digest = hashlib.sha256(content).digest()
        with self._lock, disk_errors(self._target), self._path.open("ab") as stream:
            stream.write(len(content).to_bytes(HEAD, "little") + digest + content)

    def kept(self) -> Iterator[Kept]:
        """All that was kept by a run before this one; a part that was cut off is dropped."""
        try:
            stream = self._path.open("r+b")
        except FileNotFoundError:
            return
        with stream:
            whole = 0
            while part := _part(stream):
                yield _unpacked(part)
                whole = stream.tell()
            stream.truncate(whole)


def _part(stream: Any) -> bytes:
    """The next part; empty where there is none that is whole."""
    size = int.from_bytes(stream.read(HEAD), "little")
    digest = stream.read(DIGEST)
    content: bytes = stream.read(size) if size else b""
    return content if hashlib.sha256(content).digest() == digest else b""


def _unpacked(content: bytes) -> Kept:
    size = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + size])["__metadata__"]
    tensors = load("safetensors.torch:load")(content)
    return Kept(told["step"], json.loads(told["outcome"]), tensors)
