"""Finished tensors to their places: on disk, each at its offset, or in memory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from magmerge import dtypes
from magmerge.checkpoints.layout import index_of
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.checkpoints.staging import Staging
from magmerge.errors import OutputError
from magmerge.types import Plan, Step


class Sink(Protocol):
    """Takes every entry of each tensor once, in any order, from any thread."""

    def write(self, step: Step, start: int, part: Tensor) -> None:
        """Take the entries of `step` from `start` on, in their final dtype."""
        ...


class MemorySink:
    """Keeps the tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def write(self, step: Step, start: int, part: Tensor) -> None:
        name, shape = step.spec.name, step.spec.shape
        with self._lock:
            if step.twin is not None:
                self.tensors[name] = self.tensors[step.twin]
                return
            if name not in self.tensors:
                self.tensors[name] = torch.empty(shape, dtype=part.dtype)
        self.tensors[name].reshape(-1)[start : start + part.numel()] = part.reshape(-1)


class FileSink:
    """Writes each tensor at its offset in a staged file; `publish` verifies all and names them."""

    def __init__(self, plan: Plan, staging: Staging) -> None:
        self._plan = plan
        self._staging = staging
        self._written: dict[str, int] = {}
        self._settled: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> FileSink:
        with self._explained():
            for shard in self._plan.shards:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                with _opened(self._staging.folder / shard.file, flags) as handle:
                    _reserve(handle, shard.size)
                    _write_at(handle, memoryview(shard.header), 0)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, step: Step, start: int, part: Tensor) -> None:
        data = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
        path = self._staging.folder / self._plan.shards[step.shard].file
        with self._explained(), _opened(path, os.O_RDWR) as handle:
            _write_at(handle, data, step.offset + start * part.element_size())
        with self._lock:
            name = step.spec.name
            self._written[name] = self._written.get(name, 0) + len(data)

    def settlers(self) -> list[Callable[[], None]]:
        """Calls that see each shard's data to the disk, to be made before `publish`."""
        return [partial(self._settle, shard.file) for shard in self._plan.shards]

    def _settle(self, file: str) -> None:
        with self._explained(), _opened(self._staging.folder / file, os.O_RDWR) as handle:
            os.fsync(handle)
            self._settled.add(file)

    def publish(self, extra: Mapping[str, bytes]) -> None:
        """Write the `extra` files, verify, and give the result its final name."""
        assert self._settled == {shard.file for shard in self._plan.shards}
        with self._explained():
            extra = dict(extra)
            for name, text in index_of(self._plan.steps, self._plan.shards).items():
                extra[name] = text.encode()
            for name, content in extra.items():
                path = self._staging.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._verify()
            self._staging.publish(extra if self._staging.single else ())

    def _verify(self) -> None:
        """Every tensor was written, and safetensors' own reader finds what the plan says."""
        files = [self._staging.folder / shard.file for shard in self._plan.shards]
        found = SafetensorsCheckpoint(files, str(self._staging.target)).specs
        wanted = {step.spec.name: step.spec for step in self._plan.steps}
        sizes = {name: dtypes.nbytes(spec) for name, spec in wanted.items()}
        if found != wanted or self._written != sizes:
            odd = {name for name in wanted | found if wanted.get(name) != found.get(name)}
            odd |= {name for name in sizes if self._written.get(name) != sizes[name]}
            raise OutputError(
                f"the written files are not as planned: {', '.join(sorted(odd))}",
                source=self._staging.target,
                remedy="report this; nothing was left at the output",
            )

    def _explained(self) -> DiskErrors:
        return DiskErrors(self._staging.target)


class DiskErrors:
    """Turns the operating system's errors into one message with a remedy."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OutputError(
                "no space left on the disk" if full else f"cannot be written: {error.strerror}",
                source=self._target,
                remedy=(
                    "free some space or choose another output; nothing was left behind"
                    if full
                    else "choose a folder that you may write to; nothing was left behind"
                ),
            ) from error


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Opened for one use: a result may have more shards than a process may have open files."""
    handle = os.open(path, flags, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _reserve(handle: int, size: int) -> None:
    """Take the space now: a full disk is found before the work. macOS can only set the size."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], offset + done)
