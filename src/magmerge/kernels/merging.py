"""Fused merges: pieces of layers as stored in, stored bytes and what the record tells out."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from magmerge.core.fused import Fused
from magmerge.kernels.arguments import (
    Bytes,
    Inputs,
    Stages,
    TallyArgument,
    library,
    piece_of,
    scratch,
)

KEEP = ("all", "beyond", "band", "drop")
"""What stays; "rank" is seen to before, by engine.kernel_steps."""
COMBINE = ("sum", "plain", "weighted")
SCALING = ("as_is", "multiply", "divide")
TARGETS = (None, "ellipsoid", "sphere")
GATES = ("off", "grow", "shrink")
BITS = 31
"""Of a draw (linalg/draws.py)."""
NO_COSINE = -2.0


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


def merged(fused: Fused, inputs: Inputs, grain: int, code: int, out: Bytes) -> list[float] | None:
    """Merge a piece into the bytes `out` of the format `code`; the squares of each grain of the
    merged task vector. None where something is not finite, or too large for the format.
    """
    before = np.empty(-(-inputs.entries // grain))
    tally = TallyArgument(before=before.ctypes.data)
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
    tally = TallyArgument(*(part.ctypes.data for part in parts))
    if not _merge(fused, inputs, (columns, inputs.entries, code, calibration), tally, out):
        return None
    return parts._replace(cosines=parts.cosines[parts.cosines != NO_COSINE])


def _merge(
    fused: Fused,
    inputs: Inputs,
    form: tuple[int, int, int, Calibration | None],
    tally: TallyArgument,
    out: Bytes,
) -> bool:
    kernels, (columns, grain, code, calibration) = library(), form
    stages, arrays = _stages(fused, inputs, calibration)
    piece, more = piece_of(inputs, columns, grain, code, out)
    size_of = kernels.call("scratch")
    size_of.restype = ctypes.c_int64
    size = size_of(ctypes.byref(stages), ctypes.c_int64(columns))
    flags = kernels.call("merge")(
        *map(ctypes.byref, (stages, piece, tally)), scratch(size).ctypes.data_as(ctypes.c_void_p)
    )
    # Until here the arrays whose addresses the structures hold must live.
    del arrays, more
    return bool(flags == 0)


def _stages(
    fused: Fused, inputs: Inputs, calibration: Calibration | None
) -> tuple[Stages, list[Any]]:
    """The structure, and the arrays that it points to."""
    count = len(inputs.experts)
    each = (fused.weights, fused.factors, *fused.thresholds, fused.stay)
    assert all(len(values) == count for values in each if values), "one for each expert"
    weights = np.array(fused.weights, np.float32)
    arrays: list[Any] = [weights]
    stages = Stages(
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
