"""CRC-32 of bytes that were written in parts: joined without reading them once more."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

POLYNOMIAL = 0xEDB88320
"""CRC-32's, its highest power in the lowest bit."""
ONE, X = 1 << 31, 1 << 30


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of parts that follow each other, from each one's own and its size in bytes."""
    total = 0
    for checksum, size in parts:
        total = _product(_power(8 * size), total) ^ checksum
    return total


@cache
def _power(exponent: int) -> int:
    """x to the exponent, modulo the polynomial."""
    result, square = ONE, X
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square = _product(square, square)
        exponent >>= 1
    return result


def _product(first: int, second: int) -> int:
    result = 0
    for place in range(31, -1, -1):
        if first >> place & 1:
            result ^= second
        second = second >> 1 ^ (POLYNOMIAL if second & 1 else 0)
    return result
