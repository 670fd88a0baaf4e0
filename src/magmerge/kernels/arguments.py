"""What the kernels are called with: structures as in kernels.c, memory, the library itself."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from magmerge.core.lazy import Tensor, torch
from magmerge.kernels.library import Library, load

FORMATS = {"F32": 0, "BF16": 1, "F16": 2}
"""Stored formats that the kernels read and write, by safetensors' codes."""
DELTA = 3
"""The format of what is a float32 task vector already."""
ALIGNED = 64

Bytes = NDArray[np.uint8]


class Stages(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("experts", "keep", "combine", "mean", "scaling")),
        *((name, ctypes.c_int32) for name in ("calibrate", "gate")),
        *((name, ctypes.c_float) for name in ("scale", "least")),
        *((name, ctypes.c_void_p) for name in ("weights", "factors", "low", "high")),
        *((name, ctypes.c_void_p) for name in ("low_until", "high_until", "stay", "states")),
        ("chunks", ctypes.c_int64),
    ]


class PieceArgument(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("entries", "columns", "grain", "start")),
        *((name, ctypes.c_void_p) for name in ("base", "experts", "formats", "result")),
    ]


class TallyArgument(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("before", "experts", "cosines", "free", "factor")
    ]


class Inputs(NamedTuple):
    """A piece of a layer of all models, as stored: `base` (None: zeros) and `experts` with their
    formats, numbers of FORMATS or DELTA. `start`: the place of its first entry in the layer.
    `states`: those of the generators of each expert, where something is drawn, [K, chunks, 4].
    """

    entries: int
    start: int
    experts: Sequence[NDArray[Any]]
    formats: Sequence[int]
    base: NDArray[Any] | None
    base_format: int
    states: NDArray[np.uint64] | None = None


def is_here() -> bool:
    """Whether there are kernels on this machine."""
    return load() is not None


def kernels_take(tensor: Tensor) -> bool:
    """Whether there are kernels, and they can read or fill a tensor: none that is trained."""
    plain = tensor.is_cpu and tensor.dtype == torch.float32 and not tensor.requires_grad
    return plain and is_here()


def piece_of(
    inputs: Inputs, columns: int, grain: int, code: int, out: Bytes | None
) -> tuple[PieceArgument, list[Any]]:
    """The structure, and the arrays that it points to."""
    assert all(part.flags.c_contiguous for part in inputs.experts)
    assert inputs.base is None or inputs.base.flags.c_contiguous
    experts = np.array([expert.ctypes.data for expert in inputs.experts], np.uintp)
    formats = np.array([*inputs.formats, inputs.base_format, code], np.int32)
    piece = PieceArgument(
        entries=inputs.entries,
        columns=columns,
        grain=grain,
        start=inputs.start,
        base=None if inputs.base is None else inputs.base.ctypes.data,
        experts=experts.ctypes.data,
        formats=formats.ctypes.data,
        result=None if out is None else out.ctypes.data,
    )
    return piece, [experts, formats]


def library() -> Library:
    library = load()
    assert library is not None
    return library


class _Memory(threading.local):
    """Memory of a thread that kernels work in, kept for the next call."""

    block: Bytes = np.empty(0, np.uint8)


_memory = _Memory()


def scratch(size: int) -> Bytes:
    if len(_memory.block) < size + ALIGNED:
        _memory.block = np.empty(size + ALIGNED, np.uint8)
    shift = -_memory.block.ctypes.data % ALIGNED
    return _memory.block[shift:]
