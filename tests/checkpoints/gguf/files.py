"""GGUF files as llama.cpp writes them, by hand: no test needs the library gguf to make one."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
Packed = tuple[int, tuple[int, ...], bytes]
"""The code of a format, a shape, and the bytes."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, list):
        inner = b"".join(value(part)[4:] for part in item)
        kind = struct.unpack("<I", value(item[0])[:4])[0]
        return struct.pack("<IIQ", 9, kind, len(item)) + inner
    return struct.pack("<II", 4, item)


def packed(tensor: Tensor | Packed) -> Packed:
    if isinstance(tensor, tuple):
        return tensor
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return CODES[tensor.dtype], tuple(tensor.shape), content


def write_gguf(
    path: Path, tensors: Mapping[str, Tensor | Packed], facts: Mapping[str, Any]
) -> Path:
    """A file of version 3 with an alignment of 32."""
    head, infos, data = b"", b"", b""
    for key, item in facts.items():
        head += text(key) + value(item)
    for name, tensor in tensors.items():
        code, shape, content = packed(tensor)
        infos += text(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", size) for size in shape[::-1])
        infos += struct.pack("<IQ", code, len(data))
        data += content + b"\0" * (-len(content) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + head + infos
    path.write_bytes(start + b"\0" * (-len(start) % 32) + data)
    return path


def turned(weight: Tensor, heads: int) -> Tensor:
    """A query's or key's rows as llama.cpp has them: first and second halves of a head by turns."""
    rows = weight.shape[0] // heads
    order = [head * rows + half * (rows // 2) + row
             for head in range(heads) for row in range(rows // 2) for half in (0, 1)]  # fmt: skip
    return weight[order]
