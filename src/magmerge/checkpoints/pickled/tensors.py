"""What a pickle says of tensors and storages, checked as far as the pickle alone tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magmerge.checkpoints.pickled.records import Global, Storage, TensorRecord
from magmerge.checkpoints.pickled.refusals import DamagedError, RefusedError, spoken

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
