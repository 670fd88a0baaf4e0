"""Lines of a text file: where each begins is found in one pass, a line is read when needed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from magmerge.samples.rows import DataError

LIMIT = 1 << 24
"""Bytes that one line may have."""


class Lines:
    """The lines of a file by their place; `blank` says whether empty ones count."""

    def __init__(self, path: Path, *, blank: bool) -> None:
        self.path = path
        self._starts, self._numbers = array("q"), array("Q")
        with opened(path) as stream:
            position = 0
            for number, raw in numbered(stream, path):
                if blank or not raw.isspace():
                    self._starts.append(position)
                    self._numbers.append(number)
                position += len(raw)

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, row: int) -> int:
        """The line's number in the file, from 1."""
        return self._numbers[row]

    def read(self, stream: BinaryIO, row: int) -> str:
        """One line's text; DataError if it is not UTF-8 or holds a NUL byte."""
        stream.seek(self._starts[row])
        return decoded(stream.readline(LIMIT + 1), self.path, self.number(row))


def numbered(stream: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with their ends, numbered from 1; DataError if one is longer than LIMIT."""
    number = 0
    while raw := stream.readline(LIMIT + 1):
        number += 1
        if len(raw) > LIMIT:
            raise DataError(
                f"line {number} is longer than {LIMIT >> 20} MiB",
                source=path,
                remedy="write one sample a line",
            )
        yield number, raw


def decoded(raw: bytes, path: Path, number: int) -> str:
    """The line's text without its end; a byte order mark before the first is dropped."""
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"line {number} is not UTF-8", source=path, remedy="save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(
            f"line {number} holds a NUL byte: this is no text",
            source=path,
            remedy="save the file as UTF-8 text",
        )
    return text.rstrip("\r\n")


def opened(path: Path) -> BinaryIO:
    """The file, to read bytes; DataError where the system refuses."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", source=path, remedy="check its permissions"
        ) from error
