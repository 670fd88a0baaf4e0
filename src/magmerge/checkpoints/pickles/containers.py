"""From a file to the records in it: a zip file, a plain pickle, or torch's format before zip files,
which is pickles one after the other, then the bytes of all storages.
"""

from __future__ import annotations

import io
import itertools
import mmap
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from magmerge.checkpoints.pickles.limits import NESTED, Budget, DamagedError, RefusedError, spoken
from magmerge.checkpoints.pickles.opcodes import PickleMachine, Stream
from magmerge.checkpoints.pickles.rebuilders import REBUILDERS
from magmerge.checkpoints.pickles.records import WIDTHS, Storage, stored
from magmerge.checkpoints.pickles.windows import Short, Window

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
TAR, TAR_AT = b"ustar", 257
PICKLE = "data.pkl"
LONGEST_PICKLE = 1 << 29
LOCAL, LOCAL_MAGIC = 30, b"PK\x03\x04"
ENCRYPTED = 1


class _Archive:
    """The entries of one file, or of its part that begins there, each found to be stored whole and
    within it.
    """

    def __init__(self, file: Path, stream: BinaryIO, size: int, begin: int = 0) -> None:
        self._file, self._size, self._begin = file, size, begin
        self._stream = io.BufferedReader(Window(stream, begin, size))
        self._storages: dict[tuple[str, str | None, int], Storage] = {}
        self._roots: dict[str, Storage] = {}
        self._entries = _entries(Window(stream, begin, size))
        self._top = _top_folder(self._entries)
        order = f"{self._top}/byteorder"
        if order in self._entries and self._content(order, 16) != b"little":
            raise RefusedError("it was written on a big-endian machine")

    def read(self) -> tuple[Any, Counter[str]]:
        """The object that its pickle describes, and the names in it."""
        content = self._content(f"{self._top}/{PICKLE}", LONGEST_PICKLE)
        budget = Budget(len(content))
        return PickleMachine(io.BytesIO(content), budget, self._persistent).load(), budget.names

    def _content(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        start, size = self._place(name)
        if size > most:
            raise RefusedError(f"its entry {spoken(name)} has {size:,} bytes")
        self._stream.seek(start)
        return self._stream.read(size)

    def _persistent(self, reference: Any) -> Any:
        key, storage, _ = _storage(reference, (5,), self._file)
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
            self._roots[key] = Storage(None, size, self._file, self._begin + start)
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


def _entries(content: Window) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(Short(content)) as archive:
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
    for entry, following in itertools.pairwise(placed):
        if entry.header_offset + LOCAL + entry.compress_size > following.header_offset:
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


class _Legacy:
    """A file of that format; `home` is where its bytes are, `size` how many they are."""

    def __init__(self, home: Path | bytes, size: int) -> None:
        self._home = home
        self._size = size
        self._storages: dict[str, Storage] = {}
        self._views: dict[str, Storage] = {}

    def read(self, stream: Stream, budget: Budget) -> Any:
        """The object after the magic number, with its storages' places."""
        protocol = _plain(stream, budget)
        if protocol != PROTOCOL:
            raise DamagedError(f"its version is {spoken(protocol)}, not {PROTOCOL}")
        system = _plain(stream, budget)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise RefusedError("it was written on a big-endian machine")
        content = PickleMachine(stream, budget, self._persistent).load()
        self._place(_plain(stream, budget), stream.tell(), stream)
        return content

    def _persistent(self, reference: Any) -> Any:
        if isinstance(reference, tuple) and len(reference) > 1 and reference[0] == "module":
            # A class, beside the text of its source.
            return reference[1]
        key, storage, view = _storage(reference, (5, 6), self._home)
        storage = self._storages.setdefault(key, storage)
        return storage if view is None else self._view(storage, view)

    def _view(self, root: Storage, reference: Any) -> Storage:
        """A part of a storage: key, first entry, number of entries."""
        sound = (
            isinstance(reference, tuple) and len(reference) == 3 and isinstance(reference[0], str)
        )
        if not sound or not all(isinstance(n, int) and n >= 0 for n in reference[1:]):
            raise DamagedError("it refers to a part of a storage in no known way")
        key, *numbers = reference
        shift, size = (number * WIDTHS[root.dtype or "uint8"] for number in numbers)
        return self._views.setdefault(key, Storage(root.dtype, size, self._home, None, root, shift))

    def _place(self, keys: Any, position: int, stream: Stream) -> None:
        """Say where each storage is: its number of entries in 8 bytes, then the entries."""
        if not isinstance(keys, list):
            raise DamagedError("it does not list its storages")
        for key in keys:
            storage = self._storages.get(key) if isinstance(key, str) else None
            head = stream.read(8)
            if storage is None or storage.start is not None or len(head) != 8:
                raise DamagedError(f"it lists a storage {spoken(key)} that it does not use")
            size = int.from_bytes(head, "little") * WIDTHS[storage.dtype or "uint8"]
            position += 8
            if size != storage.size or position + size > self._size:
                raise DamagedError(
                    f"its storage {spoken(key)} should have {storage.size:,} bytes, and "
                    f"{min(size, self._size - position):,} are there"
                )
            storage.start = position
            position += size
            stream.seek(position)


def _storage(
    reference: Any, lengths: tuple[int, ...], home: Path | bytes
) -> tuple[str, Storage, Any]:
    """A storage that a pickle refers to: its key, itself, and which part of it is meant, if any."""
    known = isinstance(reference, tuple) and len(reference) in lengths
    if not known or reference[0] != "storage":
        raise DamagedError("it refers to a storage in no known way")
    _, kind, key, _, count, view = (*reference, None)[:6]
    if not isinstance(key, str):
        raise DamagedError("a storage's key is no text")
    return key, stored(kind, count, home), view


def _plain(stream: Stream, budget: Budget) -> Any:
    """The object of a pickle that can have no storages beside it."""

    def refuse(_: Any) -> Any:
        raise DamagedError("it refers to a storage that a plain pickle cannot have")

    return PickleMachine(stream, budget, refuse).load()


def _nested(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """A storage within a plain pickle: the bytes of a whole file in the legacy format."""
    if len(arguments) != 1 or not isinstance(arguments[0], bytes):
        return None
    (content,) = arguments
    # The same bytes can be read any number of times.
    budget.convert(len(content))
    budget.depth += 1
    if budget.depth > NESTED:
        raise RefusedError(f"it has pickles within pickles, more than {NESTED} deep")
    stream = io.BytesIO(content)
    if _plain(stream, budget) != MAGIC:
        raise DamagedError("the bytes of a storage are not in torch's format")
    held = _Legacy(content, len(content)).read(stream, budget)
    budget.depth -= 1
    return held


# Of all rebuilders this one alone reads a container, so it is added here.
REBUILDERS["torch.storage._load_from_bytes"] = _nested


def read(file: Path) -> tuple[Any, Counter[str]]:
    """The records of a zip file, a file in the legacy format, or a plain pickle; and how often it
    names each class and function.

    RefusedError for anything else, and for what cannot be read without running code.
    """
    size = file.stat().st_size
    if not size:
        raise DamagedError("it is empty")
    with file.open("rb") as stream:
        head = stream.read(TAR_AT + len(TAR))
        if head.startswith(LOCAL_MAGIC):
            return _Archive(file, stream, size).read()
        if head[TAR_AT:] == TAR:
            raise RefusedError(
                "it is a tar file, as torch wrote them before 2017",
                "load it with a torch older than 2.0 and save its state_dict() with torch.save",
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            budget = Budget(size)
            held = _plain(mapped, budget)
            if isinstance(held, int) and held == MAGIC:
                held = _Legacy(file, size).read(mapped, budget)
            return held, budget.names


def read_part(file: Path, begin: int, size: int) -> Any:
    """The records of a zip file that is the part [begin, begin + size) of a file."""
    with file.open("rb") as stream:
        return _Archive(file, stream, size, begin).read()[0]
