"""The kernels as functions of numpy arrays: pieces of layers in, stored bytes and tallies out."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from magmerge.kernels.library import Library, load
from numpy.typing import NDArray

from magmerge.core.fused import Fused

FORMATS = {"F32": 0, "BF16": 1, "F16": 2}
"""Stored formats that the kernels read and write, by safetensors' codes."""
DELTA = 3
"""The format of what is a float32 task vector already."""
KEEP = ("all", "beyond", "band", "drop")
COMBINE = ("sum", "plain", "weighted")
SCALING = ("as_is", "multiply", "divide")
TARGETS = (None, "ellipsoid", "sphere")
GATES = ("off", "grow", "shrink")
BITS = 31
"""Of a draw (linalg/draws.py)."""
ALIGNED = 64
NO_COSINE = -2.0

Bytes = NDArray[np.uint8]


class _Stages(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("experts", "keep", "combine", "mean", "scaling")),
        *((name, ctypes.c_int32) for name in ("calibrate", "gate")),
        *((name, ctypes.c_float) for name in ("scale", "least")),
        *((name, ctypes.c_void_p) for name in ("weights", "factors", "low", "high")),
        *((name, ctypes.c_void_p) for name in ("low_until", "high_until", "stay", "states")),
        ("chunks", ctypes.c_int64),
    ]


class _Piece(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("entries", "columns", "grain", "start")),
        *((name, ctypes.c_void_p) for name in ("base", "experts", "formats", "result")),
    ]


class _Tally(ctypes.Structure):
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


class Calibration(NamedTuple):
    """WSC by rows: its target, and what the gate lets through: "off" (all), "grow", "shrink"."""

    target: str
    gate: str


class RowTally(NamedTuple):
    """Of each row: the squares of the merged task vector and of the experts' [K, rows], the mean
    cosine of the rows that have one, and the factor before the gate and after.
    """

    before: NDArray[np.float64]
    experts: NDArray[np.float64]
    cosines: NDArray[np.float64]
    free: NDArray[np.float32]
    factor: NDArray[np.float32]


def is_here() -> bool:
    """Whether there are kernels on this machine."""
    return load() is not None


def merged(fused: Fused, inputs: Inputs, grain: int, code: int, out: Bytes) -> list[float] | None:
    """Merge a piece into the bytes `out` of the format `code`; the squares of each grain of the
    merged task vector. None where something is not finite, or too large for the format.
    """
    before = np.empty(-(-inputs.entries // grain))
    tally = _Tally(before=before.ctypes.data)
    sound = _merge(fused, inputs, (0, grain, code, None), tally, out)
    return before.tolist() if sound else None


def calibrated(
    fused: Fused, calibration: Calibration, inputs: Inputs, columns: int, code: int, out: Bytes
) -> RowTally | None:
    """The same with each row, of `columns` entries, scaled by its factor of WSC."""
    rows = inputs.entries // columns
    parts = RowTally(
        np.empty(rows),
        np.empty((len(inputs.experts), rows)),
        np.empty(rows),
        np.empty(rows, np.float32),
        np.empty(rows, np.float32),
    )
    tally = _Tally(*(part.ctypes.data for part in parts))
    if not _merge(fused, inputs, (columns, inputs.entries, code, calibration), tally, out):
        return None
    return parts._replace(cosines=parts.cosines[parts.cosines != NO_COSINE])


def _merge(
    fused: Fused,
    inputs: Inputs,
    form: tuple[int, int, int, Calibration | None],
    tally: _Tally,
    out: Bytes,
) -> bool:
    library, (columns, grain, code, calibration) = _library(), form
    stages, arrays = _stages(fused, inputs, calibration)
    piece, more = _piece(inputs, columns, grain, code, out)
    size_of = library.call("scratch")
    size_of.restype = ctypes.c_int64
    size = size_of(ctypes.byref(stages), ctypes.c_int64(columns))
    flags = library.call("merge")(
        *map(ctypes.byref, (stages, piece, tally)), _scratch(size).ctypes.data_as(ctypes.c_void_p)
    )
    # Until here the arrays whose addresses the structures hold must live.
    del arrays, more
    return flags == 0


def _stages(
    fused: Fused, inputs: Inputs, calibration: Calibration | None
) -> tuple[_Stages, list[Any]]:
    """The structure, and the arrays that it points to."""
    weights = np.array(fused.weights, np.float32)
    arrays: list[Any] = [weights]
    stages = _Stages(
        experts=len(inputs.experts),
        keep=KEEP.index(fused.keep),
        combine=COMBINE.index(fused.combine),
        mean=fused.mean,
        scaling=SCALING.index(fused.scaling),
        scale=fused.scale,
        least=min((abs(weight) for weight in fused.weights if weight), default=1.0),
        weights=weights.ctypes.data,
    )
    if calibration is not None:
        stages.calibrate = TARGETS.index(calibration.target)
        stages.gate = GATES.index(calibration.gate)

    def point(name: str, array: NDArray[Any]) -> None:
        arrays.append(array)
        setattr(stages, name, array.ctypes.data)

    if fused.factors is not None:
        point("factors", np.array(fused.factors, np.float32))
    stop = inputs.start + inputs.entries
    for name, thresholds in zip(("low", "high"), fused.thresholds, strict=False):
        # Where all of the piece lies before `until`, equal entries are beyond as well.
        pairs = [_below(t.value) if t.until >= stop else t.value for t in thresholds]
        point(name, np.array(pairs, np.float32))
        untils = [0 if t.until >= stop else t.until for t in thresholds]
        point(f"{name}_until", np.array(untils, np.int64))
    if fused.keep == "drop":
        point("stay", np.array([round(share * 2**BITS) for share in fused.stay], np.uint32))
        assert inputs.states is not None
        stages.chunks = inputs.states.shape[1]
        point("states", inputs.states)
    return stages, arrays


def _below(value: float) -> float:
    """The greatest float32 that is smaller, of a positive one."""
    return float(np.nextafter(np.float32(value), np.float32(0))) if value > 0 else value


def _piece(
    inputs: Inputs, columns: int, grain: int, code: int, out: Bytes | None
) -> tuple[_Piece, list[Any]]:
    """The structure, and the arrays that it points to."""
    experts = np.array([expert.ctypes.data for expert in inputs.experts], np.uintp)
    formats = np.array([*inputs.formats, inputs.base_format, code], np.int32)
    piece = _Piece(
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


def front(inputs: Inputs, base: NDArray[np.float32], deltas: NDArray[np.float32]) -> bool:
    """Fill `base` [n] and `deltas` [K, n] with float32 numbers; whether all task vectors are
    finite.
    """
    piece, arrays = _piece(inputs, 0, 1, 0, None)
    flags = _library().call("front")(
        ctypes.byref(piece),
        ctypes.c_int32(len(inputs.experts)),
        base.ctypes.data_as(ctypes.c_void_p),
        deltas.ctypes.data_as(ctypes.c_void_p),
    )
    del arrays
    return flags == 0  # type: ignore[no-any-return]


class Counts(NamedTuple):
    """Of each expert and bracket how many magnitudes are above, [K, ranks], and those within."""

    above: NDArray[np.int64]
    values: Sequence[Sequence[NDArray[np.float32]]]


def observed(inputs: Inputs, brackets: Sequence[Sequence[tuple[float, float]]]) -> Counts | None:
    """What a survey wants to know of a piece; None where something is not finite."""
    experts, ranks = len(inputs.experts), len(brackets[0])
    low, high = (
        np.array([[pair[i] for pair in row] for row in brackets], np.float32) for i in (0, 1)
    )
    above, within = np.empty((2, experts, ranks), np.int64)
    piece, arrays = _piece(inputs, 0, 1, 0, None)
    room = min(inputs.entries, max(1024, inputs.entries // 16))
    while True:
        values = np.empty((experts, ranks, room), np.float32)
        flags = _library().call("observe")(
            ctypes.byref(piece),
            ctypes.c_int32(experts),
            ctypes.c_int32(ranks),
            *(
                array.ctypes.data_as(ctypes.c_void_p)
                for array in (low, high, above, within, values)
            ),
            ctypes.c_int64(room),
        )
        if flags or within.max(initial=0) <= room:
            break
        room = int(within.max())
    del arrays
    if flags:
        return None
    kept = [[values[k, r, : within[k, r]] for r in range(ranks)] for k in range(experts)]
    return Counts(above, kept)


def cast(values: NDArray[np.float32], code: int, out: Bytes) -> bool:
    """Float32 numbers in the format `code`; whether all of them are within its range."""
    flags = _library().call("cast")(
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
    _library().call("gram")(
        places.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int32(count),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        products.ctypes.data_as(ctypes.c_void_p),
        _scratch(ALIGNED * count * (16 + count)).ctypes.data_as(ctypes.c_void_p),
    )
    return products


def draws(states: NDArray[np.uint64], count: int, start: int = 0) -> NDArray[np.int32]:
    """Uniform integers of 31 bits for the places [start, start + count), of a generator whose
    states [chunks, 4] begin with the chunk of `start`.
    """
    out = np.empty(count, np.int32)
    _library().call("draw")(
        states.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(start),
        ctypes.c_int64(count),
        out.ctypes.data_as(ctypes.c_void_p),
    )
    return out


def _library() -> Library:
    library = load()
    assert library is not None
    return library


class _Memory(threading.local):
    """Memory of a thread that kernels work in, kept for the next call."""

    block: Bytes = np.empty(0, np.uint8)


_memory = _Memory()


def _scratch(size: int) -> Bytes:
    if len(_memory.block) < size + ALIGNED:
        _memory.block = np.empty(size + ALIGNED, np.uint8)
    shift = -_memory.block.ctypes.data % ALIGNED
    return _memory.block[shift:]
