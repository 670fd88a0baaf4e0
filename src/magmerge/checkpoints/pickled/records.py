"""What a pickle becomes: plain values, and inert records in place of everything that is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ATOMS = (str, bytes, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class, a function or a constant; nothing is ever looked up under it."""

    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An object that was not made: its class, what it would be called with, and its state.

    `entries` are those of a mapping, `elements` those of a sequence that the object also is.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Storage:
    """The bytes of one or several tensors: where they are in a file, or in a bytes object.

    `dtype` is torch's name, None for an untyped one. `start` is None until it is known. A view
    has the storage that it is part of as `root`, and begins `shift` bytes after it.
    """

    dtype: str | None
    size: int
    home: Path | bytes
    start: int | None = None
    root: Storage | None = None
    shift: int = 0

    def begin(self) -> int | None:
        """Where its first byte is in its home; None if it is not there."""
        if self.root is None:
            return self.start
        begin = self.root.start
        inside = self.shift >= 0 and self.shift + self.size <= self.root.size
        return begin + self.shift if begin is not None and inside else None


@dataclass(slots=True, eq=False)
class TensorRecord:
    """A tensor that was not made: a view of a storage, in entries of its dtype."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True, eq=False)
class ArrayDtype:
    """numpy's dtype: its code, such as f4, and its byte order."""

    code: str
    order: str = "="


@dataclass(slots=True, eq=False)
class ArrayRecord:
    """A numpy array that was not made; its fields are None until its state is known.

    `shape` is that of the bytes row by row; the array's axes are those in the order of `axes`.
    """

    shape: tuple[int, ...] | None = None
    dtype: ArrayDtype | None = None
    content: bytes | None = None
    axes: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class OddKey:
    """A key of a mapping or set that is no plain value. It equals only itself.

    Tuples within tuples take for ever to hash, and long integers can be made to have equal hashes.
    """

    value: Any


def key_of(value: Any) -> Any:
    """`value` as it may be hashed."""
    if isinstance(value, ATOMS) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    return OddKey(value)
