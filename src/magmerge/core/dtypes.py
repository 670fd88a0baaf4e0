"""Number formats by safetensors' codes, and sizes in bytes. Needs no torch to import."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import ParameterError, suggestion
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_TORCH_NAMES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""The formats that magmerge computes with."""
NUMPY = frozenset(_TORCH_NAMES) - {"F8_E4M3", "F8_E5M2"}
"""Those whose numbers numpy has."""
QUANTISED = frozenset({"F8_E4M3", "F8_E5M2"})

_SPOKEN = {"fp16": "F16", "half": "F16", "bf16": "BF16", "fp32": "F32", "float": "F32"}
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def known(code: str) -> bool:
    """Whether magmerge can read tensors of this format."""
    return code in _TORCH_NAMES


def width(code: str) -> int:
    """Bytes of one entry of this format."""
    return _TORCH_NAMES[code][1]


def torch_dtype(code: str) -> torch.dtype:
    """torch's dtype for a safetensors code."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[code][0])
    return dtype


def code_of(dtype: torch.dtype | str | None) -> str | None:
    """safetensors' code for a torch dtype, or its name; None where it has none."""
    name = str(dtype).removeprefix("torch.")
    return next((code for code, (spoken, _) in _TORCH_NAMES.items() if spoken == name), None)


def numpy_values(data: NDArray[np.uint8], code: str) -> NDArray[Any]:
    """Stored bytes as the numbers that they stand for, exactly; BF16 as float32."""
    if code == "BF16":
        return (data.view("uint16").astype("uint32") << 16).view("float32")
    return data.view(torch_name(code))


def rounded(values: NDArray[np.float64], code: str) -> NDArray[np.float64]:
    """Finite numbers as they are after being stored in one of FLOATS, nearest and ties to even."""
    if code != "BF16":
        return values.astype(torch_name(code)).astype("float64")
    bits = values.astype("float32").view("uint32")
    kept: NDArray[Any] = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return kept.astype("uint32").view("float32").astype("float64")


def nbytes(spec: TensorSpec) -> int:
    """Size of a tensor's data in bytes."""
    return math.prod(spec.shape) * _TORCH_NAMES[spec.dtype][1]


def torch_name(code: str) -> str:
    """What torch and transformers' config files call this format."""
    return _TORCH_NAMES[code][0]


def parse_float_dtype(text: str) -> str:
    """The code for a user's word: float32, bf16, float16, ...; ParameterError for any other."""
    spoken = {_TORCH_NAMES[code][0]: code for code in FLOATS} | _SPOKEN
    spoken |= {code.lower(): code for code in FLOATS}
    code = spoken.get(text.lower().removeprefix("torch."))
    if code is None:
        raise ParameterError(f"no floating-point dtype {text!r}", remedy=suggestion(text, spoken))
    return code


def parse_size(text: str | int) -> int:
    """Bytes in a size like 5GB (5 * 1000^3), 5GiB (5 * 1024^3), or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise ParameterError(
            f"{text!r} is no size", remedy="write a number of bytes, or 500MB, 5GB, 5GiB"
        )
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size < math.inf:
        raise ParameterError(f"{text} is no possible size", remedy="write 500MB, 5GB, 5GiB")
    return int(size)


def spoken_size(size: float) -> str:
    """Bytes for a person: 4.65 GB."""
    for letter in ("", "k", "M", "G"):
        if size < 1000:
            return f"{size:.3g} {letter}B"
        size /= 1000
    return f"{size:.3g} TB"
