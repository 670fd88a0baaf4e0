"""Finished tensors to their places: on disk, each at its offset, or in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from magmerge.checkpoints.open_files import Handles
from magmerge.checkpoints.output.layout import index_of
from magmerge.checkpoints.output.ledger import Ledger, WrittenPart
from magmerge.checkpoints.output.own_files import disk_errors, output_error
from magmerge.checkpoints.output.staging import Staging
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.core import dtypes
from magmerge.core.errors import shortened
from magmerge.core.file_system import NOFOLLOW, are_large, give_back, sync_folder, write_at
from magmerge.core.lazy import Tensor, torch
from magmerge.core.types import Shard, Step

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

T = TypeVar("T")
TRAIL = 64 << 20
"""Bytes of a large result that the system keeps before they are on their way to the disk."""


def stored_bytes(tensor: Tensor) -> Bytes:
    """A tensor's entries as files hold them, flat; the same memory where they lie so already."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def entries_of(data: Bytes, code: str) -> Tensor:
    """Such bytes as the entries, flat, of the format `code`; in the same memory."""
    return torch.from_numpy(data).view(dtypes.torch_dtype(code))


class Sink(Protocol):
    """Takes every entry of each tensor once, in any order, from any thread."""

    def write(self, step: Step, start: int, part: Bytes) -> None:
        """Take the stored bytes of the step's tensor from its entry `start` on."""
        ...

    def write_parts(self, step: Step, parts: Sequence[tuple[int, Bytes]]) -> None:
        """The same of many parts, each with its start."""
        ...


class MemorySink:
    """Keeps the tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def write(self, step: Step, start: int, part: Bytes) -> None:
        name, code = step.spec.name, step.spec.dtype
        with self._lock:
            if step.twin is not None:
                self.tensors[name] = self.tensors[step.twin]
                return
            if name not in self.tensors:
                dtype = dtypes.torch_dtype(code)
                self.tensors[name] = torch.empty(step.tensor.shape, dtype=dtype)
        first = start * dtypes.width(code)
        stored_bytes(self.tensors[name])[first : first + len(part)] = part

    def write_parts(self, step: Step, parts: Sequence[tuple[int, Bytes]]) -> None:
        for start, part in parts:
            self.write(step, start, part)


class FileSink:
    """Writes each tensor at its offset in a staged file; `publish` verifies all and names them.
    `ledger` has what is finished, in this run or in one before it.
    """

    def __init__(self, steps: Sequence[Step], shards: Sequence[Shard], staging: Staging) -> None:
        self._steps = steps
        self._shards = tuple(shards)
        self._staging = staging
        self._written: dict[str, int] = {}
        self._settled: set[str] = set()
        self._large, self._trail = are_large(shard.size for shard in shards), 0
        self._lock = threading.Lock()
        self._handles = Handles(os.O_RDWR | os.O_CREAT | NOFOLLOW)
        self._paths = [staging.folder / shard.file for shard in shards]
        self.ledger = Ledger(staging.folder)

    def resumed(self, read: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
        """What became of the steps whose bytes are there already, by key. One whose outcome `read`
        refuses (ValueError) is to be written again.
        """
        if not self._staging.resumed:
            return {}
        steps = {
            step.key: (step, *(other for other in self._steps if other.twin == step.spec.name))
            for step in self._steps
            if not step.twin
        }
        outcomes = {}
        for key, line in self.ledger.finished(steps, self._shards).items():
            try:
                outcomes[key] = read(line["outcome"])
            except (ValueError, RecursionError):
                continue
            self.ledger.written[key] = line["parts"]
            for step in steps[key]:
                self._count(step, dtypes.nbytes(step.spec))
        return outcomes

    def finish(self, step: Step, outcome: bytes) -> None:
        """All of a step is written, with this JSON of what became of it."""
        with self._explained():
            self.ledger.finish(step, outcome)

    def keep_findings(self, content: bytes) -> None:
        """What the passes before the last one found."""
        with self._explained():
            self.ledger.keep_findings(content)

    def __enter__(self) -> FileSink:
        with self._explained():
            for shard in self._shards:
                path = self._staging.folder / shard.file
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._handles.opened(path) as handle:
                    os.ftruncate(handle, min(shard.size, os.fstat(handle).st_size))
                    # A full disk is found before the work. macOS can only set the size.
                    getattr(os, "posix_fallocate", _set_size)(handle, 0, shard.size)
                    _write_at(handle, memoryview(shard.header), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

    def write(self, step: Step, start: int, part: Bytes) -> None:
        self.write_parts(step, [(start, part)])

    def write_parts(self, step: Step, parts: Sequence[tuple[int, Bytes]]) -> None:
        path, width = self._paths[step.shard], dtypes.width(step.spec.dtype)
        with self._explained(), self._handles.opened(path) as handle:
            for start, part in parts:
                _write_at(handle, part.data, step.offset + start * width)
                if step.twin is None:
                    self.ledger.note(step, start, part.data)
            size = sum(len(part) for _, part in parts)
            if self._is_long(size):
                # This begins to write; what an earlier call began to write is let go of.
                give_back(handle, 0, 0)
        with self._lock:
            self._count(step, size)

    def _is_long(self, size: int) -> bool:
        """Whether so much of a large result was written meanwhile that pages are to be given back;
        told of each part's size.
        """
        with self._lock:
            self._trail += size
            long = self._large and self._trail > TRAIL
            if long:
                self._trail = 0
        return long

    def _count(self, step: Step, size: int) -> None:
        name = f"{step.part}/{step.spec.name}"
        self._written[name] = self._written.get(name, 0) + size

    def settlers(self) -> list[Callable[[], None]]:
        """Calls that see each shard's data to the disk, to be made before `publish`."""
        return [partial(self._settle, shard.file) for shard in self._shards]

    def _settle(self, file: str) -> None:
        path = self._staging.folder / file
        with self._explained(), self._handles.opened(path) as handle:
            os.fsync(handle)
            if self._large:
                give_back(handle, 0, 0)
            self._settled.add(file)

    def checksums(self) -> dict[str, str]:
        """The CRC-32 of each tensor's bytes as they were written, by its name within the result."""
        from magmerge.core.checksums import joined

        parts: dict[str, list[WrittenPart]] = {}
        for step in self._steps:
            parts.setdefault(step.path, []).extend(self.ledger.written.get(step.key, ()))
        twins = {step.path: step.twin for step in self._steps if step.twin is not None}
        own = {path: sorted(parts[twins.get(path, path)]) for path in parts}
        return {
            path: f"{joined((int(part.digest, 16), part.size) for part in written):08x}"
            for path, written in own.items()
        }

    def publish(self, extra: Mapping[str, bytes]) -> None:
        """Write the `extra` files, verify, and give the result its final name."""
        assert self._settled == {shard.file for shard in self._shards}
        with self._explained():
            index = index_of(self._steps, self._shards)
            extra = {**extra, **{name: text.encode() for name, text in index.items()}}
            for name, content in extra.items():
                path = self._staging.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            self._verify()
            files = [*extra, *(shard.file for shard in self._shards)]
            for folder in {(self._staging.folder / name).parent for name in files}:
                sync_folder(folder)
            self._staging.publish(extra if self._staging.single else ())

    def _verify(self) -> None:
        """Every tensor was written, and safetensors' own reader finds what the plan says."""
        for number, shard in enumerate(self._shards):
            own = [step for step in self._steps if step.shard == number]
            expected = {step.stored.name: step.stored for step in own}
            file = self._staging.folder / shard.file
            specs = SafetensorsCheckpoint([file], str(self._staging.target)).specs
            sizes = {
                step.stored.name: self._written.get(f"{step.part}/{step.spec.name}") for step in own
            }
            odd = {name for name in expected | specs if expected.get(name) != specs.get(name)}
            odd |= {name for name, spec in expected.items() if sizes[name] != dtypes.nbytes(spec)}
            if odd:
                problem = f"the written files are not as planned: {shortened(sorted(odd))}"
                remedy = "report this; nothing was left at the output"
                raise output_error(self._staging.target, problem, remedy)

    def _explained(self) -> AbstractContextManager[None]:
        kept = "what is finished is kept for --resume"
        left = kept if self._staging.resume else "nothing was left behind"
        return disk_errors(self._staging.target, f"; {left}")


def _set_size(handle: int, _: int, size: int) -> None:
    os.ftruncate(handle, size)


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += write_at(handle, data[done:], offset + done)
