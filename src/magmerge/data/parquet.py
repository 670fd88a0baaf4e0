"""Parquet files as tables: only the columns and the groups of rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from magmerge.core.extras import needed
from magmerge.data.rows import DataError
from magmerge.data.sample_table import Column, SampleRow, Table


class ParquetTable(Table):
    """One Parquet file."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        library = needed("pyarrow.parquet", "a Parquet file")
        self._broken = needed("pyarrow", "a Parquet file").ArrowException
        try:
            self._file = library.ParquetFile(path)
            schema, metadata = self._file.schema_arrow, self._file.metadata
        except (self._broken, OSError, ValueError) as error:
            raise self._unreadable(error) from error
        self.columns = {field.name: _kind(field) for field in schema}
        sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        self._ends = [*accumulate(sizes)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[SampleRow]:
        own = [name for name in columns if name in self.columns]
        for group, run in groupby(map(int, rows), self._group):
            first = self._ends[group - 1] if group else 0
            try:
                part = self._file.read_row_group(group, columns=own)
                read = [(row, part.slice(row - first, 1).to_pylist()[0]) for row in run]
            except (self._broken, OSError, ValueError) as error:
                raise self._unreadable(error) from error
            for row, values in read:
                yield SampleRow(f"row {row}", values)

    def _group(self, row: int) -> int:
        return next(place for place, end in enumerate(self._ends) if row < end)

    def _unreadable(self, error: Exception) -> DataError:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return DataError(
            f"it is no Parquet file that can be read: {text}",
            source=self.source,
            remedy="write it anew, or give its rows as JSON Lines",
        )


def _kind(field: Any) -> Column:
    return "text" if str(field.type) in ("string", "large_string", "string_view") else "other"
