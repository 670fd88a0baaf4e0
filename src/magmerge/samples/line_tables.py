"""Tables in text files: JSON Lines, CSV, TSV, and plain text with one sample a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from magmerge.samples.lines import LIMIT, Lines, decoded, numbered, opened
from magmerge.samples.rows import DataError
from magmerge.samples.table import Column, Row

DELIMITERS = ",;\t"


class TextLines:
    """One sample a line, in the column `text`."""

    classes: Mapping[str, tuple[str, ...]] = {}
    columns: Mapping[str, Column] = {"text": "text"}

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._lines = Lines(path, blank=True)

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[Row]:
        with opened(self._lines.path) as stream:
            for row in rows:
                place = f"line {self._lines.number(row)}"
                yield Row(place, {"text": self._lines.read(stream, row)})


class JsonLines:
    """One JSON object a line; only the lines that are read are parsed."""

    classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._lines = Lines(path, blank=False)
        first = next(self.read([0], []), None) if len(self) else None
        self.columns: Mapping[str, Column] = {
            name: "text" if isinstance(value, str) else "other"
            for name, value in (first.values.items() if first else ())
        }

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[Row]:
        with opened(self._lines.path) as stream:
            for row in rows:
                yield Row(f"line {self._lines.number(row)}", self._parse(stream, row))

    def _parse(self, stream: BinaryIO, row: int) -> dict[str, Any]:
        text, number = self._lines.read(stream, row), self._lines.number(row)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"line {number} is not JSON: {error}",
                source=self.source,
                remedy='write one object a line, such as {"text": "..."}',
            ) from error
        if not isinstance(content, dict):
            raise DataError(
                f"line {number} holds a {type(content).__name__}, not an object",
                source=self.source,
                remedy='write one object a line, such as {"text": "..."}; '
                "`jq -c '.[]' FILE` makes lines of one list",
            )
        return content


class Separated:
    """CSV or TSV with a header; it is streamed, once to count and once for each reading."""

    classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, path: Path) -> None:
        self.source, self._path = str(path), path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else self._sniff()
        self._header, first, self._count = self._survey()
        twice = {name for name in self._header if self._header.count(name) > 1}
        if twice:
            raise DataError(
                f"two columns are named {sorted(twice)[0]!r}",
                source=path,
                remedy="give each column of the header a name of its own",
            )
        self.columns: Mapping[str, Column] = {
            name: "other" if _is_number(value) else "text"
            for name, value in zip(self._header, first or self._header, strict=False)
        }

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[Row]:
        wanted, found = set(rows), {}
        last = max(wanted, default=-1)
        for index, (number, values) in enumerate(self._rows()):
            if index in wanted:
                found[index] = Row(f"line {number}", self._named(number, values))
            if index >= last:
                break
        return (found[row] for row in rows)

    def _named(self, number: int, values: list[str]) -> dict[str, str]:
        if len(values) != len(self._header):
            raise DataError(
                f"line {number} has {len(values)} fields, the header {len(self._header)}",
                source=self._path,
                remedy="put fields that hold a separator or a line's end into double quotes",
            )
        return dict(zip(self._header, values, strict=True))

    def _survey(self) -> tuple[list[str], list[str] | None, int]:
        header = next(self._records(), (1, []))[1]
        first, count = None, 0
        for _, values in self._rows():
            first = first or values
            count += 1
        return header, first, count

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The records after the header."""
        records = self._records()
        next(records, None)
        return records

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Every record that is not blank, with the number of its last line."""
        with opened(self._path) as stream:
            lines = (
                f"{decoded(raw, self._path, number)}\n"
                for number, raw in numbered(stream, self._path)
            )
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            try:
                for values in reader:
                    if values:
                        yield reader.line_num, values
            except csv.Error as error:
                raise DataError(
                    f"line {reader.line_num} is not CSV: {error}",
                    source=self._path,
                    remedy="mend the quotes there, or save the table as JSON Lines",
                ) from error

    def _sniff(self) -> str:
        with opened(self._path) as stream:
            header = decoded(stream.readline(LIMIT), self._path, 1)
        return next((mark for mark in DELIMITERS if mark in header), DELIMITERS[0])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
