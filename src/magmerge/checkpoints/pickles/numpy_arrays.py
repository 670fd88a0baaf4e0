"""numpy's arrays in a pickle, as records of their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from magmerge.checkpoints.pickles.limits import Budget, DamagedError, RefusedError, spoken
from magmerge.checkpoints.pickles.records import (
    DIMENSIONS,
    LARGEST,
    WIDTHS,
    ArrayDtype,
    ArrayRecord,
    Storage,
    TensorRecord,
)

CODES = {"b1": "bool"} | {
    f"{kind[0]}{width}": name
    for name, width in WIDTHS.items()
    for kind in ("int", "uint", "float", "complex")
    if name == f"{kind}{8 * width}" and name != "complex32"
}
"""numpy's codes of the dtypes that torch has too."""
LONGEST_CODE = 16


def set_state(array: ArrayRecord, state: Any, budget: Budget) -> None:
    """What ndarray.__setstate__ takes: version, shape, dtype, order of memory, bytes."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise DamagedError("a numpy array has no sound state")
    shape, dtype, columns_first, content = state[-4:]
    if isinstance(content, str):
        budget.convert(len(content))
        content = content.encode("latin-1")
    array.shape, array.axes = _shape(shape), tuple(range(len(_shape(shape))))
    if columns_first:
        array.shape, array.axes = array.shape[::-1], array.axes[::-1]
    array.dtype = dtype if isinstance(dtype, ArrayDtype) else None
    # A list is that of an array of objects.
    array.content = content if isinstance(content, bytes) else None


def set_order(dtype: ArrayDtype, state: Any) -> None:
    """What dtype.__setstate__ takes: version, byte order, and what plain dtypes have not."""
    if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
        dtype.order = state[1]
        if len(state) > 2 and state[2] is not None:
            dtype.code = "V"


def as_tensor(array: ArrayRecord) -> TensorRecord | None:
    """The same entries as a tensor of torch; None for an array of other things than numbers."""
    shape, dtype, content = array.shape, array.dtype, array.content
    if shape is None or dtype is None or content is None or dtype.code not in CODES:
        return None
    width = int(re.sub(r"\D", "", dtype.code))
    if dtype.order == ">" and width > 1:
        raise RefusedError("it holds a numpy array of big-endian numbers")
    if math.prod(shape) * width != len(content):
        raise DamagedError(
            f"a numpy array of shape {spoken(str(list(shape)))} has {len(content):,} bytes"
        )
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    turned = tuple(shape[axis] for axis in array.axes)
    name = CODES[dtype.code]
    storage = Storage(name, len(content), content, 0)
    return TensorRecord(storage, name, 0, turned, tuple(strides[axis] for axis in array.axes))


def _shape(shape: Any) -> tuple[int, ...]:
    shape = (shape,) if isinstance(shape, int) else shape
    sound = isinstance(shape, tuple) and len(shape) <= DIMENSIONS
    if not sound or not all(isinstance(n, int) and 0 <= n <= LARGEST for n in shape):
        raise DamagedError("a numpy array's shape is no numbers of entries")
    return tuple(map(int, shape))


def _dtype(arguments: tuple[Any, ...], _: Budget) -> Any:
    code = arguments[0] if arguments else None
    if isinstance(code, bytes):
        code = code[:LONGEST_CODE].decode("latin-1")
    if not isinstance(code, str):
        return None
    code = code[:LONGEST_CODE]
    order = code[0] if code[:1] in ("<", ">", "|", "=") else "="
    return ArrayDtype(code.lstrip("<>|="), order)


def _from_buffer(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """How protocol 5 spells an array: bytes, dtype, shape, order of memory, and of the axes."""
    if len(arguments) not in (4, 5):
        return None
    content, dtype, shape, order, axes = (*arguments, None)[:5]
    if isinstance(content, bytearray):
        budget.convert(len(content))
        content = bytes(content)
    array = ArrayRecord()
    set_state(array, (shape, dtype, order == "F", content), budget)
    if order == "K" and axes is not None:
        array.axes = _order(axes, len(array.axes))
    return array


def _order(axes: Any, count: int) -> tuple[int, ...]:
    # Tuples in tuples take for ever to compare, so nothing but numbers is sorted.
    sound = isinstance(axes, tuple) and len(axes) == count and all(type(n) is int for n in axes)
    if not sound or sorted(axes) != list(range(count)):
        raise DamagedError("a numpy array's axes are in no order")
    return tuple(axes)


def _scalar(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """A numpy number: dtype and bytes."""
    if len(arguments) != 2:
        return None
    array = ArrayRecord()
    set_state(array, ((), arguments[0], False, arguments[1]), budget)
    return array


REBUILDERS: dict[str, Callable[[tuple[Any, ...], Budget], Any]] = {"numpy.dtype": _dtype}
for _core in ("numpy.core", "numpy._core"):
    REBUILDERS[f"{_core}.multiarray._reconstruct"] = lambda _, __: ArrayRecord()
    REBUILDERS[f"{_core}.multiarray.scalar"] = _scalar
    REBUILDERS[f"{_core}.numeric._frombuffer"] = _from_buffer
