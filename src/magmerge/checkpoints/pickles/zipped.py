"""torch's zip files: a pickle, and an entry for each storage, stored as it is."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from magmerge.checkpoints.pickles.budget import Budget
from magmerge.checkpoints.pickles.machine import Machine
from magmerge.checkpoints.pickles.records import Storage, stored
from magmerge.checkpoints.pickles.refusals import DamagedError, RefusedError, spoken

PICKLE = "data.pkl"
LONGEST_DIRECTORY = 1 << 24
"""Bytes of the list of entries: some 200,000 of them. A large model has a few thousand."""
LONGEST_PICKLE = 1 << 29
LOCAL, LOCAL_MAGIC = 30, b"PK\x03\x04"
ENCRYPTED = 1


class _Short:
    """A file of which no more than a list of entries is read at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size > LONGEST_DIRECTORY:
            raise RefusedError(f"its list of entries has {size:,} bytes")
        return self._stream.read(LONGEST_DIRECTORY if size < 0 else size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


class Archive:
    """The entries of one file, each found to be stored whole and within the file."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self._file, self._stream, self._size = file, stream, size
        self._storages: dict[tuple[str, str | None, int], Storage] = {}
        self._roots: dict[str, Storage] = {}
        self._entries = _entries(stream)
        self._top = _top_folder(self._entries)
        order = f"{self._top}/byteorder"
        if order in self._entries and self.content(order, 16) != b"little":
            raise RefusedError("it was written on a big-endian machine")

    def pickle(self) -> bytes:
        """Its pickle."""
        return self.content(f"{self._top}/{PICKLE}", LONGEST_PICKLE)

    def read(self, content: bytes, budget: Budget) -> Any:
        """The object that its pickle describes."""
        return Machine(io.BytesIO(content), budget, self._persistent).load()

    def content(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        start, size = self._place(name)
        if size > most:
            raise RefusedError(f"its entry {spoken(name)} has {size:,} bytes")
        self._stream.seek(start)
        return self._stream.read(size)

    def _persistent(self, reference: Any) -> Any:
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise DamagedError("it refers to a storage in no known way")
        kind, key, _, count = reference[1:]
        if not isinstance(key, str):
            raise DamagedError("a storage's key is no text")
        storage = stored(kind, count, self._file)
        known = self._storages.setdefault((key, storage.dtype, storage.size), storage)
        if known.root is None:
            # Types and sizes of one entry are views of it, so its bytes are there once.
            known.root = self._root(key)
            if known.size > known.root.size:
                raise DamagedError(
                    f"its storage {spoken(key)} should have {known.size:,} bytes, and "
                    f"{known.root.size:,} are there"
                )
        return known

    def _root(self, key: str) -> Storage:
        if key not in self._roots:
            start, size = self._place(f"{self._top}/data/{key}")
            self._roots[key] = Storage(None, size, self._file, start)
        return self._roots[key]

    def _place(self, name: str) -> tuple[int, int]:
        """Where an entry's bytes begin, and how many they are."""
        if name not in self._entries:
            raise DamagedError(f"it has no entry {spoken(name)}")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
            raise RefusedError(
                f"its entry {spoken(name)} is compressed or encrypted, as torch never writes it",
                "unpack it and pack it again without compression: zip -0 -r",
            )
        head = b""
        # An offset may be any number of 64 bits, and negative in a file that was cut.
        if 0 <= entry.header_offset < self._size:
            self._stream.seek(entry.header_offset)
            head = self._stream.read(LOCAL)
        if len(head) < LOCAL or not head.startswith(LOCAL_MAGIC):
            raise DamagedError(f"its entry {spoken(name)} is not where its list says")
        lengths = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        start = entry.header_offset + LOCAL + sum(lengths)
        if entry.file_size != entry.compress_size or start + entry.file_size > self._size:
            raise DamagedError(
                f"its entry {spoken(name)} should have {entry.file_size:,} bytes, and "
                f"{max(0, self._size - start):,} are there"
            )
        return start, entry.file_size


def _entries(stream: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(cast("BinaryIO", _Short(stream))) as archive:
            listed = archive.infolist()
    except RefusedError:
        raise
    except Exception as error:
        # zipfile lets errors of struct, of text and of the system through.
        raise DamagedError(f"it is no sound zip file: {spoken(error)}") from error
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise RefusedError("it has two entries of one name", "do not use this file")
    placed = sorted(listed, key=lambda entry: entry.header_offset)
    for one, following in itertools.pairwise(placed):
        if one.header_offset + LOCAL + one.compress_size > following.header_offset:
            raise DamagedError(f"its entry {spoken(following.filename)} lies within another one")
    return entries


def _top_folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder in the archive that all is in."""
    tops = [name[: -len(PICKLE) - 1] for name in entries if name.endswith(f"/{PICKLE}")]
    tops = [top for top in tops if "/" not in top]
    if len(tops) != 1:
        what = "several pickles" if tops else f"no {PICKLE}"
        raise DamagedError(f"it is a zip file with {what}, and torch writes one")
    if f"{tops[0]}/constants.pkl" in entries:
        raise RefusedError(
            "it is a TorchScript archive, which is a program",
            "load it with torch.jit.load and save its state_dict() with torch.save",
        )
    return tops[0]
