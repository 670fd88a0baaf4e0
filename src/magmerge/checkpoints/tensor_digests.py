"""BLAKE3 of files by their tensors: each a tree over leaves of a fixed size, whose bytes are taken
as they are read for other ends, in any order and from any thread.

A leaf is LEAF bytes of a tensor, the last one what is left. A tensor's digest is that of its
leaves' digests, one after the other; a file's that of its tensors by their names: name, format,
shape, digest, each once. So it does not matter in which order a file has its tensors, or what its
header looks like. Entries of the header count where there are any but `format`: files of adapters
have numbers there that decide the result.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from blake3 import blake3

from magmerge.checkpoints.digests import told_digest
from magmerge.core import dtypes
from magmerge.core.types import TensorSpec

LEAF = 1 << 17
"""Bytes of a leaf: enough for all lanes of a processor, and small beside a piece of a layer."""
TORN = 1 << 24
"""Bytes of torn leaves that a job keeps; what is beyond it is read once more at the end."""
BY_TENSORS = "blake3-tensors:"
"""How a digest of tensors begins."""
SIZE = 32


def tensor_digest(data: memoryview) -> bytes:
    """The digest of a tensor whose bytes are all here."""
    leaves = (blake3(data[at : at + LEAF]).digest() for at in range(0, len(data), LEAF))
    return blake3(b"".join(leaves)).digest()


def list_digest(
    tensors: Iterable[tuple[TensorSpec, bytes]], entries: Mapping[str, str] | None = None
) -> str:
    """The digest of a list of tensors with their digests, in whatever order; `entries` are those of
    a file's header.
    """
    told = {key: value for key, value in (entries or {}).items() if key != "format"}
    whole = blake3(json.dumps(told, sort_keys=True).encode() if told else b"")
    for spec, digest in sorted(tensors, key=lambda pair: pair[0].name):
        # JSON quotes names, so that no name can look like the line of another tensor.
        line = json.dumps([spec.name, spec.dtype, list(spec.shape), digest.hex()])
        whole.update(f"\n{line}".encode())
    return BY_TENSORS + whole.hexdigest()


class Offset(NamedTuple):
    """Where the bytes of a tensor begin."""

    file: Path
    start: int


class Torn(NamedTuple):
    """A leaf of which a part was read."""

    tree: TensorTree
    leaf: int


class TornLeaves:
    """Parts of leaves that wait for the rest of them: at most so many bytes of all files of a job.
    The oldest are forgotten, those of samples for example, which nothing is read next to.
    """

    def __init__(self, room: int = TORN) -> None:
        self._room = room
        self.parts: OrderedDict[Torn, list[tuple[int, bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def join(self, torn: Torn, start: int, part: memoryview, size: int) -> bytes | None:
        """Keep a part of a leaf of `size` bytes, from its byte `start` on; the leaf's digest where
        this was the last that it lacked.
        """
        own = bytes(part)
        with self._lock:
            parts = self.parts.setdefault(torn, [])
            parts.append((start, own))
            self._room -= len(own)
            self.parts.move_to_end(torn)
            if not _covers(parts, size):
                while self._room < 0:
                    self._room += _length(self.parts.popitem(last=False)[1])
                return None
            self._room += _length(self.parts.pop(torn))
        whole, reached = blake3(), 0
        for at, content in sorted(parts):
            whole.update(memoryview(content)[max(0, reached - at) :])
            reached = max(reached, at + len(content))
        return whole.digest()

    def forget(self, torn: Torn) -> None:
        """The leaf was read whole."""
        with self._lock:
            self._room += _length(self.parts.pop(torn, []))


def _length(parts: list[tuple[int, bytes]]) -> int:
    return sum(len(content) for _, content in parts)


def _covers(parts: list[tuple[int, bytes]], size: int) -> bool:
    reached = 0
    for start, content in sorted(parts):
        if start > reached:
            return False
        reached = max(reached, start + len(content))
    return reached >= size


class _Thread(threading.local):
    samples = False


_thread = _Thread()


@contextmanager
def sampling() -> Iterator[None]:
    """Within it what this thread reads is read again later, and is digested only then."""
    _thread.samples = True
    try:
        yield
    finally:
        _thread.samples = False


class TensorTree:
    """The leaves of a tensor of `size` bytes, as far as they were read."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._missing = -(-size // LEAF)
        self._done = bytearray(self._missing)
        self._digests = bytearray(SIZE * self._missing)
        self._lock = threading.Lock()

    def add(self, start: int, data: memoryview, torn: TornLeaves) -> None:
        """Bytes from `start` on were read: each leaf that is new and whole is digested."""
        for leaf in range(start // LEAF, -(-(start + len(data)) // LEAF)):
            if self._done[leaf]:
                continue
            begin, end = self.span(leaf)
            part = data[max(begin - start, 0) : end - start]
            if len(part) == end - begin:
                # Two threads that read the same at the same time both digest it: neither waits.
                digest: bytes | None = blake3(part).digest()
                if torn.parts:
                    torn.forget(Torn(self, leaf))
            else:
                place = Torn(self, leaf)
                digest = torn.join(place, max(start - begin, 0), part, end - begin)
            if digest is not None:
                self._put(leaf, digest)

    def span(self, leaf: int) -> tuple[int, int]:
        """A leaf's first byte and its last + 1."""
        begin = leaf * LEAF
        return begin, min(begin + LEAF, self._size)

    def left(self) -> list[int]:
        """Leaves that were not read."""
        return [leaf for leaf, done in enumerate(self._done) if not done]

    def digest(self) -> bytes | None:
        """The tensor's digest, once all leaves have one."""
        return None if self._missing else blake3(self._digests).digest()

    def _put(self, leaf: int, digest: bytes) -> None:
        with self._lock:
            if not self._done[leaf]:
                self._digests[SIZE * leaf : SIZE * (leaf + 1)] = digest
                self._done[leaf] = 1
                self._missing -= 1


class FileDigest:
    """What is known of the digest of one file, as it was when its header was read: `stamp`. It
    hears nothing until it is watched.
    """

    def __init__(
        self, stamp: str, tensors: Iterable[tuple[TensorSpec, Offset]], entries: Mapping[str, str]
    ) -> None:
        self.stamp = stamp
        self.places = {spec.name: (spec, place) for spec, place in tensors}
        self._entries = entries
        self._torn: TornLeaves | None = None
        self._trees: dict[str, TensorTree] = {}
        self._known: dict[str, bytes] = {}

    def watch(self, torn: TornLeaves) -> None:
        """From now on digest what is read; `torn` is the job's."""
        self._torn = torn

    def note(self, name: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor from its byte `start` on were read."""
        if self._torn is None or name in self._known or _thread.samples:
            return
        whole = 0 < len(data) == dtypes.nbytes(self.places[name][0]) <= LEAF
        if whole and name not in self._trees:
            # Of one leaf, and all of it here: the same digest without a tree.
            self._known[name] = blake3(blake3(data).digest()).digest()
            return
        tree = self.tree(name)
        tree.add(start, data, self._torn)
        self._conclude(name, tree)

    def tree(self, name: str) -> TensorTree:
        """A tensor's tree, of one that was not finished."""
        size = dtypes.nbytes(self.places[name][0])
        return self._trees.get(name) or self._trees.setdefault(name, TensorTree(size))

    def left(self) -> list[str]:
        """Tensors of which something was not read."""
        for name in self.places.keys() - self._known.keys():
            self._conclude(name, self.tree(name))
        return [name for name in self.places if name not in self._known]

    def digest(self) -> str:
        """The file's digest. All its tensors must have been read."""
        known = [(spec, self._known[name]) for name, (spec, _) in self.places.items()]
        return list_digest(known, self._entries)

    def _conclude(self, name: str, tree: TensorTree) -> None:
        """Keep no leaves of a tensor that is done: memory is that of the tensors at work."""
        digest = tree.digest()
        if digest is not None:
            self._known[name] = digest
            self._trees.pop(name, None)


_opened: WeakValueDictionary[str, FileDigest] = WeakValueDictionary()
"""By stamps, so that a file that is opened twice is digested once, and one that was replaced is
another. They live as long as the checkpoints that read them."""
_lock = threading.Lock()


def opened(file: FileDigest) -> FileDigest:
    """The digest of a file that was opened: of equal stamps the first."""
    with _lock:
        return _opened.setdefault(file.stamp, file)


def watched(states: Mapping[Path, str]) -> dict[Path, FileDigest]:
    """Of files those that were opened with these stamps and are read by tensors: from now on what
    is read of them is digested. Not those whose digest somebody tells.
    """
    torn, files = TornLeaves(), {}
    for file, state in states.items():
        known = _opened.get(state)
        if known is not None and told_digest(file) is None:
            known.watch(torn)
            files[file] = known
    return files
