"""From a file to the records in it: a zip file, a plain pickle, or torch's format before zip files,
which is pickles one after the other, then the bytes of all storages.
"""

from __future__ import annotations

import io
import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.checkpoints.pickles.budget import NESTED, Budget
from magmerge.checkpoints.pickles.machine import Machine, Stream
from magmerge.checkpoints.pickles.records import WIDTHS, Storage, stored
from magmerge.checkpoints.pickles.refusals import DamagedError, RefusedError, spoken
from magmerge.checkpoints.pickles.zipped import LOCAL_MAGIC, Archive

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
TAR, TAR_AT = b"ustar", 257


class Legacy:
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
        content = Machine(stream, budget, self._persistent).load()
        self._place(_plain(stream, budget), stream.tell(), stream)
        return content

    def _persistent(self, reference: Any) -> Any:
        if not isinstance(reference, tuple) or len(reference) < 2:
            raise DamagedError("it refers to a storage in no known way")
        if reference[0] == "module":
            # A class, beside the text of its source.
            return reference[1]
        if reference[0] != "storage" or len(reference) not in (5, 6):
            raise DamagedError("it refers to a storage in no known way")
        kind, key, _, count, *view = reference[1:]
        if not isinstance(key, str):
            raise DamagedError("a storage's key is no text")
        storage = self._storages.setdefault(key, stored(kind, count, self._home))
        return self._view(storage, view[0]) if view and view[0] is not None else storage

    def _view(self, root: Storage, reference: Any) -> Storage:
        """A part of a storage: key, first entry, number of entries."""
        sound = (
            isinstance(reference, tuple) and len(reference) == 3 and isinstance(reference[0], str)
        )
        if not sound or not all(isinstance(n, int) and n >= 0 for n in reference[1:]):
            raise DamagedError("it refers to a part of a storage in no known way")
        width = WIDTHS[root.dtype or "uint8"]
        part = Storage(
            root.dtype, reference[2] * width, self._home, None, root, reference[1] * width
        )
        return self._views.setdefault(reference[0], part)

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


def _plain(stream: Stream, budget: Budget) -> Any:
    return Machine(stream, budget, no_storages).load()


def no_storages(_: Any) -> Any:
    """For pickles that can have no storages beside them."""
    raise DamagedError("it refers to a storage that a plain pickle cannot have")


def read_nested(content: bytes, budget: Budget) -> Any:
    """The object in the bytes of a whole file of this format."""
    budget.depth += 1
    if budget.depth > NESTED:
        raise RefusedError(f"it has pickles within pickles, more than {NESTED} deep")
    stream = io.BytesIO(content)
    magic = _plain(stream, budget)
    if magic != MAGIC:
        raise DamagedError("the bytes of a storage are not in torch's format")
    held = Legacy(content, len(content)).read(stream, budget)
    budget.depth -= 1
    return held


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, and how often it names each class and function."""

    held: Any
    names: Counter[str]


def read(file: Path) -> Content:
    """The records of a zip file, of a file in the legacy format, or of a plain pickle.

    RefusedError for anything else, and for what cannot be read without running code.
    """
    size = file.stat().st_size
    if not size:
        raise DamagedError("it is empty")
    with file.open("rb") as stream:
        head = stream.read(TAR_AT + len(TAR))
        if head.startswith(LOCAL_MAGIC):
            archive = Archive(file, stream, size)
            pickle = archive.pickle()
            budget = Budget(len(pickle))
            return Content(archive.read(pickle, budget), budget.names)
        if head[TAR_AT:] == TAR:
            raise RefusedError(
                "it is a tar file, as torch wrote them before 2017",
                "load it with a torch older than 2.0 and save its state_dict() with torch.save",
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            budget = Budget(size)
            held = Machine(mapped, budget, no_storages).load()
            if isinstance(held, int) and held == MAGIC:
                held = Legacy(file, size).read(mapped, budget)
            return Content(held, budget.names)
