"""Kernels for parts of the way: task vectors, casts, inner products, what a survey counts."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from magmerge.kernels.arguments import ALIGNED, Bytes, Inputs, library, piece_of, scratch


def differences(inputs: Inputs, deltas: NDArray[np.float32]) -> bool:
    """Fill `deltas` [K, n] with the task vectors, or without a base the weights; whether all are
    finite.
    """
    piece, arrays = piece_of(inputs, 0, 1, 0, None)
    flags = library().call("differences")(
        ctypes.byref(piece),
        ctypes.c_int32(len(inputs.experts)),
        deltas.ctypes.data_as(ctypes.c_void_p),
    )
    del arrays
    return flags == 0  # type: ignore[no-any-return]


Counts = tuple[list[int], list[NDArray[np.float32]]]
"""Of one expert, for each bracket, how many magnitudes are above it, and those within."""


def observed(
    inputs: Inputs, brackets: Sequence[Sequence[tuple[float, float]]]
) -> list[Counts] | None:
    """What a survey must know of a piece, of each expert; None where something is not finite."""
    experts, ranks = len(inputs.experts), max(map(len, brackets))
    bounds = np.full((2, experts, ranks), np.inf, np.float32)
    for k, row in enumerate(brackets):
        for r, pair in enumerate(row):
            bounds[:, k, r] = pair
    above, within = np.empty((2, experts, ranks), np.int64)
    piece, arrays = piece_of(inputs, 0, 1, 0, None)
    room = min(inputs.entries, max(1024, inputs.entries // 8))
    while True:
        size = 4 * experts * ranks * room
        values = scratch(size)[:size].view(np.float32).reshape(experts, ranks, room)
        pointers = (*bounds, above, within, values)
        flags = library().call("observe")(
            ctypes.byref(piece),
            ctypes.c_int32(experts),
            ctypes.c_int32(ranks),
            *(array.ctypes.data_as(ctypes.c_void_p) for array in pointers),
            ctypes.c_int64(room),
        )
        if flags or within.max(initial=0) <= room:
            break
        room = int(within.max())
    del arrays
    if flags:
        return None
    return [
        (
            above[k, : len(row)].tolist(),
            [values[k, r, : within[k, r]].copy() for r in range(len(row))],
        )
        for k, row in enumerate(brackets)
    ]


def cast(values: NDArray[np.float32], code: int, out: Bytes) -> bool:
    """Float32 numbers in the format `code`; whether all of them are within its range."""
    flags = library().call("cast")(
        values.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(values.size),
        ctypes.c_int32(code),
        out.ctypes.data_as(ctypes.c_void_p),
    )
    return flags == 0  # type: ignore[no-any-return]


def gram(layers: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Inner products [N, N, rows] of the same row of N layers, each [rows, columns]."""
    count, (rows, columns) = len(layers), layers[0].shape
    products = np.empty((count, count, rows))
    places = np.array([layer.ctypes.data for layer in layers], np.uintp)
    library().call("gram")(
        places.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int32(count),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        products.ctypes.data_as(ctypes.c_void_p),
        scratch(ALIGNED * count * (16 + count)).ctypes.data_as(ctypes.c_void_p),
    )
    return products


def keep_by_rank(
    delta: NDArray[np.float32],
    chances: NDArray[np.float32],
    states: NDArray[np.uint64],
    start: int,
    *,
    inverse: bool,
) -> None:
    """Set entries of one task vector, [rows, columns], to zero: each stays with the chance of its
    rank in its row, from the smallest, and with `inverse` is divided by it. `states`: those of the
    generators of its chunks, [chunks, 4], the first that of the place `start`.
    """
    rows, columns = delta.shape
    assert len(chances) == columns
    assert delta.flags.c_contiguous
    library().call("keep_by_rank")(
        delta.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        chances.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int32(inverse),
        states.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(start),
        scratch(20 * columns + 3 * ALIGNED).ctypes.data_as(ctypes.c_void_p),
    )
