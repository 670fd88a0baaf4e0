"""What every source with rows and columns can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Column = Literal["text", "image", "other"]


class SampleRow(NamedTuple):
    """The columns of one row, and where it is: "line 7"."""

    place: str
    values: Mapping[str, Any]


class Table:
    """Rows that are read only when they are asked for; `source` is what messages call it.

    `columns` say what each holds, as far as the first row or the header tells. `classes` are the
    names of the classes of a label column, in the order of their numbers.
    """

    source: str
    columns: Mapping[str, Column] = {}
    classes: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[SampleRow]:
        """The rows of these numbers, in this order, with at least those of `columns` they have."""
        raise NotImplementedError
