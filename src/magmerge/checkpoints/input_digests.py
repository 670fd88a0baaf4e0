"""Digests of input files: those of tensors that were read completed, other files read for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from blake3 import blake3

from magmerge.checkpoints.digests import DigestMemory, stamp, stamp_of
from magmerge.checkpoints.open_files import read_errors, read_into
from magmerge.checkpoints.safetensors import read_header
from magmerge.checkpoints.tensor_digests import BY_TENSORS, FileDigest, TornLeaves
from magmerge.core.errors import CheckpointError, changed_meanwhile

WHOLE = "blake3:"
"""How a digest of all bytes of a file begins, as `b3sum` prints them; that of a SHA-256 is bare."""
BLOCK = 1 << 20


def what_is_left(file: Path, known: FileDigest) -> Iterator[Callable[[], None]]:
    """Calls that read what was not read of a file's tensors, one for each tensor."""
    return (partial(_complete, known, file, name) for name in known.left())


def whole_digest(file: Path, state: str) -> str:
    """The digest of all bytes of a file, as it was with this stamp; CheckpointError where it is
    another.
    """
    content, whole = memoryview(bytearray(BLOCK)), blake3()
    with read_errors(file), file.open("rb") as stream:
        while count := stream.readinto(content):
            whole.update(content[:count])
        _check(file, stream.fileno(), state)
    return WHOLE + whole.hexdigest()


def sha256_sum(file: Path, state: str, known: DigestMemory) -> str:
    """SHA-256 of a file as it was with this stamp; CheckpointError where it is another."""
    with read_errors(file):
        digest = known.digest(file)
        if stamp(file) != state:
            raise changed_meanwhile(file)
    return digest


def is_as_recorded(file: Path, digest: str, known: DigestMemory) -> bool:
    """Whether a file has a digest that was recorded of it, of whatever kind."""
    try:
        if digest.startswith(WHOLE):
            return whole_digest(file, stamp(file)) == digest
        if digest.startswith(BY_TENSORS):
            return _by_tensors(file) == digest
        return known.digest(file) == digest
    except (CheckpointError, OSError):
        # What can no longer be read is not what was merged.
        return False


def _by_tensors(file: Path) -> str:
    """The digest of a file that nobody else reads."""
    known = FileDigest(stamp(file), *read_header(file))
    known.watch(TornLeaves())
    for call in what_is_left(file, known):
        call()
    return known.digest()


def _complete(known: FileDigest, file: Path, name: str) -> None:
    """Read the leaves that are left of a tensor, of the file that was opened and of no other."""
    tree, (_, place) = known.tree(name), known.places[name]
    with read_errors(file), file.open("rb") as stream:
        _check(file, stream.fileno(), known.stamp)
        for leaf in tree.left():
            begin, end = tree.span(leaf)
            content = memoryview(bytearray(end - begin))
            read_into(stream.fileno(), content, file, place.start + begin, name)
            known.note(name, begin, content)
        _check(file, stream.fileno(), known.stamp)


def _check(file: Path, handle: int, state: str) -> None:
    if stamp_of(os.fstat(handle)) != state:
        raise changed_meanwhile(file)
