"""What every source with rows and columns can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Column = Literal["text", "image", "other"]


class Row(NamedTuple):
    """The columns of one row, and where it is: "line 7"."""

    place: str
    values: Mapping[str, Any]


class Table(Protocol):
    """Rows that are read only when they are asked for."""

    @property
    def source(self) -> str:
        """What messages call it."""
        ...

    @property
    def columns(self) -> Mapping[str, Column]:
        """What each column holds, as far as the first row or the header tells."""
        ...

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the classes of a label column, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[Row]:
        """The rows of these numbers, in this order, with at least those of `columns` they have."""
        ...
