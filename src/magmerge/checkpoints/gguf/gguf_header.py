"""The header of a GGUF file: what it says of its model, and where each tensor's bytes are.

Every length in it is checked against the file before anything is read or made of it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.core.errors import CheckpointError, printable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
"""The kinds of numbers that values are, by their codes."""
TEXT, ARRAY = 8, 9
DEEPEST, DIMENSIONS, KEPT = 3, 8, 8
"""Arrays in arrays, a tensor's dimensions, and of how many items an array is kept."""
FORMATS = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110)},
    **{22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56)},
    **{34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
}
"""By its code: a format's name, how many entries a block of it has, and how many bytes."""
AGAIN = "fetch or write this file once more: it is no sound GGUF file"


class GgufTensor(NamedTuple):
    """A tensor as the file tells of it: the code of its format, its shape as torch has it, the file
    and where in it its bytes begin.
    """

    name: str
    code: int
    shape: tuple[int, ...]
    file: Path
    begin: int


class GgufHeader(NamedTuple):
    """What a file says of its model, short arrays among it, and its tensors."""

    facts: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of a file; CheckpointError where it is none, or where it is not sound."""
    if not file.stat().st_size:
        raise CheckpointError("it is empty", source=file, remedy=AGAIN)
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        try:
            return _header(_Reader(content), file)
        except (ValueError, struct.error, OverflowError) as error:
            problem = f"not a sound GGUF file: {printable(str(error))}"
            raise CheckpointError(problem, source=file, remedy=AGAIN) from error


class _Reader:
    """Numbers and texts one after the other, each found to be within the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = 0
        self.size = len(content)

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError(f"{count:,} bytes from {self.at:,} on lead beyond its end")
        part = self._content[self.at : self.at + count]
        self.at += count
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.bytes(self.number("<Q")).decode("utf-8", errors="replace")

    def skip_texts(self, count: int) -> None:
        for _ in range(count):
            self.bytes(self.number("<Q"))

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value; of a long array nothing but that it was there."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY or depth > DEEPEST:
            raise ValueError(f"it has a value of the unknown kind {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS and count > KEPT:
            self.bytes(count * struct.calcsize(SCALARS[inner]))
            return None
        if inner == TEXT and count > KEPT:
            self.skip_texts(count)
            return None
        # An array of empty arrays takes bytes as well: 12 each.
        items = [self.value(inner, depth + 1) for _ in range(min(count, self.size))]
        return items if count <= KEPT else None


def _header(reader: _Reader, file: Path) -> GgufHeader:
    if reader.bytes(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; 2 and 3 are read, of little-endian machines")
    tensors, facts = reader.number("<Q"), reader.number("<Q")
    known: dict[str, Any] = {}
    for _ in range(min(facts, reader.size)):
        key = reader.text()
        known[key] = reader.value(reader.number("<I"))
    told = [_tensor(reader) for _ in range(min(tensors, reader.size))]
    step = known.get(ALIGNMENT, 32)
    if not isinstance(step, int) or not 0 < step <= 1 << 20:
        raise ValueError(f"its alignment is {step}")
    start = -(-reader.at // step) * step
    placed = [_placed(*entry, start, reader.size, file) for entry in told]
    if len({tensor.name for tensor in placed}) != len(placed):
        raise ValueError("two of its tensors have one name")
    return GgufHeader(known, tuple(placed))


def _tensor(reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    """Name, code, shape and offset; the file has the fastest dimension first."""
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    return name, reader.number("<I"), shape, reader.number("<Q")


def _placed(
    name: str, code: int, shape: tuple[int, ...], offset: int, start: int, size: int, file: Path
) -> GgufTensor:
    if code not in FORMATS:
        raise ValueError(f"{name} is of the unknown format {code}")
    kind, entries, width = FORMATS[code]
    count = 1
    for length in shape:
        count *= length
    if (shape[-1] if shape else 1) % entries:
        raise ValueError(f"{name} has rows of {shape[-1]} entries, and {kind} has {entries}")
    if start + offset + count // entries * width > size:
        raise ValueError(f"{name} reaches beyond its end")
    return GgufTensor(name, code, shape, file, start + offset)
