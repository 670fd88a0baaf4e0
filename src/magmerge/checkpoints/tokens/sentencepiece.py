"""The pieces of a sentencepiece model, read from its file's plain structure. No library is needed,
and nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator

PIECES, TEXT = 1, 1
"""The fields' numbers: of the list of pieces in the file, and of the text in a piece."""
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
"""How a field is stored, by the last three bits of its tag."""


def pieces(content: bytes) -> list[str]:
    """The text of each piece by its id; ValueError where the file is torn or something else."""
    return [_text(part) for number, part in _fields(content) if number == PIECES]


def _text(piece: bytes) -> str:
    for number, part in _fields(piece):
        if number == TEXT:
            return part.decode("utf-8")
    raise ValueError("a piece has no text")


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that hold bytes, each with its number; others are passed over."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        size = {EIGHT: 8, FOUR: 4}.get(kind, 0)
        if kind == BYTES:
            size, place = _varint(content, place)
        elif kind == VARINT:
            _, place = _varint(content, place)
        elif not size:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place + size > len(content):
            raise ValueError("it ends in the middle of a field")
        if kind == BYTES:
            yield number, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place after it."""
    number = shift = 0
    while True:
        if place >= len(content) or shift > 63:
            raise ValueError("it ends in the middle of a number")
        byte = content[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
