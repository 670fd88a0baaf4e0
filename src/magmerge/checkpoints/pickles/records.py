"""What a pickle becomes: plain values, and inert records in place of everything that is called.

What it says of tensors and storages is checked as far as the pickle alone tells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.checkpoints.pickles.limits import Budget, DamagedError, RefusedError, spoken

ATOMS = (str, bytes, float, bool, type(None))


WIDTHS = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32", "complex32"), 4),
    **dict.fromkeys(("uint64", "int64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""torch's dtypes that are plain entries side by side, and their bytes."""
STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128"},
    # Quantised tensors, which are refused where they are part of the model, have these.
    **{"QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32"},
}
UNTYPED = frozenset({"torch.UntypedStorage", "torch.storage.UntypedStorage"})
DIMENSIONS = 64
LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class, a function or a constant; nothing is ever looked up under it."""

    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An object that was not made: its class, arguments, state, and entries or elements put into
    it.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Storage:
    """The bytes of one or several tensors: where they are in a file, or in a bytes object.

    `dtype` is torch's name, None for an untyped one. `start` is None until it is known. A view
    has the storage that it is part of as `root`, and begins `shift` bytes after it.
    """

    dtype: str | None
    size: int
    home: Path | bytes
    start: int | None = None
    root: Storage | None = None
    shift: int = 0

    def begin(self) -> int | None:
        """Where its first byte is in its home; None if it is not there."""
        if self.root is None:
            return self.start
        begin = self.root.start
        inside = self.shift >= 0 and self.shift + self.size <= self.root.size
        return begin + self.shift if begin is not None and inside else None


@dataclass(slots=True, eq=False)
class TensorRecord:
    """A tensor that was not made: a view of a storage, in entries of its dtype."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True, eq=False)
class ArrayDtype:
    """numpy's dtype: its code, such as f4, and its byte order."""

    code: str
    order: str = "="


@dataclass(slots=True, eq=False)
class ArrayRecord:
    """A numpy array that was not made; its fields are None until its state is known. `shape` is
    that of the bytes row by row; the array's axes are those in the order of `axes`.
    """

    shape: tuple[int, ...] | None = None
    dtype: ArrayDtype | None = None
    content: bytes | None = None
    axes: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class OddKey:
    """A key that is no plain value. It equals only itself: tuples within tuples take for ever to
    hash, and long integers can be made to have equal hashes.
    """

    value: Any


def key_of(value: Any) -> Any:
    """`value` as it may be hashed."""
    if isinstance(value, ATOMS) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    return OddKey(value)


def name_of_dtype(value: Any) -> str | None:
    """torch's name of a dtype that a pickle names; None for anything else."""
    if not isinstance(value, Global):
        return None
    package, _, name = value.name.rpartition(".")
    return name if package == "torch" and name in WIDTHS else None


def stored(kind: Any, count: Any, home: Path | bytes) -> Storage:
    """A storage of `count` entries of the class `kind`, somewhere in `home`."""
    if not isinstance(kind, Global) or not _is_count(count):
        raise DamagedError("it describes a storage of no known kind")
    if kind.name in UNTYPED:
        return Storage(None, count, home)
    package, _, name = kind.name.rpartition(".")
    dtype = STORAGES.get(name.removesuffix("Storage"))
    if package not in ("torch", "torch.cuda", "torch.storage") or dtype is None:
        raise RefusedError(f"it holds a {spoken(kind.name)}, which is unknown")
    return Storage(dtype, count * WIDTHS[dtype], home)


def tensor_record(
    arguments: tuple[Any, ...], dtype: str | None, metadata: Any
) -> TensorRecord | None:
    """The view of a storage that (storage, offset, shape, strides) describe; None if they do not.

    Without a `dtype` it is the storage's. Whether it lies within the storage is looked at when it
    is read: a legacy file tells the storage's size only after the pickle.
    """
    if len(arguments) != 4 or not isinstance(arguments[0], Storage):
        return None
    storage, offset, shape, strides = arguments
    dtype = dtype or storage.dtype or "uint8"
    if metadata:
        raise RefusedError("it holds a conjugated or negated view of a tensor")
    if not isinstance(shape, list | tuple) or not isinstance(strides, list | tuple):
        raise DamagedError("a tensor's shape and strides are no numbers of entries")
    if len(shape) != len(strides) or len(shape) > DIMENSIONS:
        raise DamagedError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise DamagedError("a tensor's shape and strides are no numbers of entries")
    return TensorRecord(storage, dtype, offset, tuple(shape), tuple(strides))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


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
    array.shape, array.axes = _array_shape(shape), tuple(range(len(_array_shape(shape))))
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


def _array_shape(shape: Any) -> tuple[int, ...]:
    shape = (shape,) if isinstance(shape, int) else shape
    sound = isinstance(shape, tuple) and len(shape) <= DIMENSIONS
    if not sound or not all(isinstance(n, int) and 0 <= n <= LARGEST for n in shape):
        raise DamagedError("a numpy array's shape is no numbers of entries")
    return tuple(map(int, shape))


def _array_dtype(arguments: tuple[Any, ...], _: Budget) -> Any:
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
        array.axes = _axes(axes, len(array.axes))
    return array


def _axes(axes: Any, count: int) -> tuple[int, ...]:
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


ARRAY_REBUILDERS: dict[str, Callable[[tuple[Any, ...], Budget], Any]] = {
    "numpy.dtype": _array_dtype
}
for _core in ("numpy.core", "numpy._core"):
    ARRAY_REBUILDERS[f"{_core}.multiarray._reconstruct"] = lambda _, __: ArrayRecord()
    ARRAY_REBUILDERS[f"{_core}.multiarray.scalar"] = _scalar
    ARRAY_REBUILDERS[f"{_core}.numeric._frombuffer"] = _from_buffer
