"""A list of image files with their labels: one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from magmerge.samples.line_tables import JsonLines
from magmerge.samples.rows import DataError
from magmerge.samples.table import Column, Row


class ImageList(JsonLines):
    """Lines such as {"image": "banded/banded_0002.jpg", "label": 0}; the file ends in .images.

    Paths are absolute, or relative to the list's own folder.
    """

    columns: Mapping[str, Column] = {"image": "image"}

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        super().__init__(path)
        self.columns = {"image": "image"}

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[Row]:
        for place, values in super().read(rows, columns):
            name = values.get("image")
            if not isinstance(name, str) or not name or "\0" in name:
                raise DataError(
                    f"{place} names no image",
                    source=self.source,
                    remedy='write {"image": "PATH", "label": 0} in each line',
                )
            yield Row(place, {**values, "image": self._folder / name})
