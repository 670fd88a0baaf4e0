"""Parts of files as files of their own, for readers of zip files."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from magmerge.checkpoints.pickles.limits import RefusedError

LONGEST_DIRECTORY = 1 << 24
"""Bytes of the list of entries: some 200,000 of them. A large model has a few thousand."""


class Short(io.BufferedReader):
    """A file of which no more than a list of entries is read at once."""

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes; RefusedError for more than a list of entries has."""
        if size is not None and size > LONGEST_DIRECTORY:
            raise RefusedError(f"its list of entries has {size:,} bytes")
        return super().read(LONGEST_DIRECTORY if size is None or size < 0 else size)


class Window(io.RawIOBase):
    """The bytes [begin, begin + size) of an open file, as a file of their own."""

    def __init__(self, stream: BinaryIO, begin: int, size: int) -> None:
        self._stream, self._begin, self._size, self._at = stream, begin, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there; before the beginning there is nothing."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there are, or fit."""
        count = max(0, min(len(buffer), self._size - self._at))
        self._stream.seek(self._begin + self._at)
        part = self._stream.read(count)
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)
