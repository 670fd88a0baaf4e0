"""Damage to files, where there is no coverage to guide it."""

from __future__ import annotations

import random
from collections.abc import Sequence

WORDS = (
    b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'""', b"[[[[", b"9" * 40,
    b"18446744073709551615", b"9223372036854775807", b"\xff" * 8, b"\x00" * 8, b"../../x",
    b"\\ud800", b"&a [*a]", b"!!python/object:os.system", b"<<: *a", b"\xff\xff\xff\x7f", b"\r\n",
    b"layers.0.", b".weight", b"F32", b"BF16", b"data_offsets", b"__metadata__",
)  # fmt: skip


def damaged(files: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the files with one to five damages."""
    content = bytearray(draw.choice(files))
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(content) + 1)
        size = min(draw.choice((1, 2, 4, 16, 64)), len(content) - at)
        other = draw.choice(files)
        start = draw.randrange(len(other) + 1)
        damage = draw.randrange(6)
        if damage == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif damage == 1:
            del content[at : at + size]
        elif damage == 2:
            content[at:at] = content[at : at + size]
        elif damage == 3:
            content[at : at + size] = draw.choice(WORDS)
        elif damage == 4:
            content[at:at] = draw.choice(WORDS)
        else:
            content[at : at + size] = other[start : start + size]
    return bytes(content)
