"""Tables in text files: JSON Lines, lists of images, CSV, TSV, and plain text, a sample a line."""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from magmerge.data.rows import DataError
from magmerge.data.sample_table import SampleRow, Table

LIMIT = 1 << 24
"""Bytes that one line may have."""
DELIMITERS = ",;\t"
OBJECTS = 'write one object a line, such as {"text": "..."}'


class TextLines(Table):
    """One sample a line, in the column `text`.

    Where each line begins is found in one pass; a line is read when it is needed.
    """

    columns = {"text": "text"}  # noqa: RUF012
    blank = True
    """Whether empty lines count."""

    def __init__(self, path: Path) -> None:
        self.source, self._path = str(path), path
        self._starts, self._numbers = array("q"), array("Q")
        with self._stream() as stream:
            for start, number in self._survey(stream):
                self._starts.append(start)
                self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[SampleRow]:
        with self._stream() as stream:
            for row in rows:
                stream.seek(self._starts[row])
                yield self._row(stream, self._numbers[row])

    def _survey(self, stream: BinaryIO) -> Iterator[tuple[int, int]]:
        """Where each row begins, and the number of its first line."""
        start = 0
        for number, raw in self._lines(stream):
            if self.blank or not raw.isspace():
                yield start, number
            start += len(raw)

    def _row(self, stream: BinaryIO, number: int) -> SampleRow:
        return SampleRow(f"line {number}", {"text": self._text(stream.readline(LIMIT + 1), number)})

    def _stream(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise self._error(
                f"cannot be read: {error.strerror}", "check its permissions"
            ) from error

    def _lines(self, stream: BinaryIO, number: int = 0) -> Iterator[tuple[int, bytes]]:
        """The lines with their ends, numbered after `number`; DataError if one is too long."""
        while raw := stream.readline(LIMIT + 1):
            number += 1
            if len(raw) > LIMIT:
                problem = f"line {number} is longer than {LIMIT >> 20} MiB"
                raise self._error(problem, "write one sample a line")
            yield number, raw

    def _text(self, raw: bytes, number: int) -> str:
        """A line without its end; a byte order mark before the first is dropped."""
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"line {number} is not UTF-8", "save the file as UTF-8") from error
        if "\0" in text:
            problem = f"line {number} holds a NUL byte: this is no text"
            raise self._error(problem, "save the file as UTF-8 text")
        return text.rstrip("\r\n")

    def _error(self, problem: str, remedy: str) -> DataError:
        return DataError(problem, source=self.source, remedy=remedy)


class JsonLines(TextLines):
    """One JSON object a line; only the lines that are read are parsed."""

    blank = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first = next(self.read([0], [])).values if len(self) else {}
        self.columns = {
            name: "text" if isinstance(value, str) else "other" for name, value in first.items()
        }

    def _row(self, stream: BinaryIO, number: int) -> SampleRow:
        place, values = super()._row(stream, number)
        try:
            content = json.loads(values["text"])
        except (ValueError, RecursionError) as error:
            raise self._error(f"{place} is not JSON: {error}", OBJECTS) from error
        if not isinstance(content, dict):
            problem = f"{place} holds a {type(content).__name__}, not an object"
            raise self._error(problem, f"{OBJECTS}; `jq -c '.[]' FILE` makes lines of one list")
        return SampleRow(place, content)


class ImageList(JsonLines):
    """Lines such as {"image": "banded/banded_0002.jpg", "label": 0}; the file ends in .images.

    Paths are absolute, or relative to the list's own folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.columns = {"image": "image"}

    def _row(self, stream: BinaryIO, number: int) -> SampleRow:
        place, values = super()._row(stream, number)
        name = values.get("image")
        if not isinstance(name, str) or not name or "\0" in name:
            remedy = 'write {"image": "PATH", "label": 0} in each line'
            raise self._error(f"{place} names no image", remedy)
        return SampleRow(place, {**values, "image": self._path.parent / name})


class Separated(TextLines):
    """CSV or TSV with a header; a record may have several lines."""

    def _survey(self, stream: BinaryIO) -> Iterator[tuple[int, int]]:
        header = self._text(stream.readline(LIMIT), 1)
        marks = "\t" if self._path.suffix.lower() == ".tsv" else DELIMITERS
        self._delimiter = next((mark for mark in marks if mark in header), marks[0])
        stream.seek(0)
        records = self._records(stream)
        self._header = next(records, (0, 1, 1, []))[-1]
        first: list[str] = []
        for start, number, _, values in records:
            yield start, number
            first = first or values
        twice = min(
            (name for name, count in Counter(self._header).items() if count > 1), default=None
        )
        if twice is not None:
            remedy = "give each column of the header a name of its own"
            raise self._error(f"two columns are named {twice!r}", remedy)
        self.columns = {
            name: "other" if _is_number(value) else "text"
            for name, value in zip(self._header, first or self._header, strict=False)
        }

    def _row(self, stream: BinaryIO, number: int) -> SampleRow:
        _, _, last, values = next(self._records(stream, number - 1))
        if len(values) != len(self._header):
            raise self._error(
                f"line {last} has {len(values)} fields, the header {len(self._header)}",
                "put fields that hold a separator or a line's end into double quotes",
            )
        return SampleRow(f"line {last}", dict(zip(self._header, values, strict=True)))

    def _records(
        self, stream: BinaryIO, number: int = 0
    ) -> Iterator[tuple[int, int, int, list[str]]]:
        """Every record that is not blank: where it begins, its first and last line, its fields."""
        start, first = stream.tell(), number + 1
        lines = (f"{self._text(raw, at)}\n" for at, raw in self._lines(stream, number))
        reader: Any = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            for values in reader:
                last = number + reader.line_num
                if values:
                    yield start, first, last, values
                start, first = stream.tell(), last + 1
        except csv.Error as error:
            raise self._error(
                f"line {number + reader.line_num} is not CSV: {error}",
                "mend the quotes there, or save the table as JSON Lines",
            ) from error


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False
