"""Whether all entries of a tensor are finite, and how many are not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from magmerge.core.lazy import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

INFINITE = {
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F32": np.uint32(0x7F800000),
    "F64": np.uint64(0x7FF0000000000000),
}
"""The bits of infinity in each format; with more of them set below the sign it is NaN."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # A sum that is finite has finite terms; one that is not may only be too large.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def count_of_bad(tensor: Tensor) -> str:
    """How many entries are not finite, in words."""
    nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{nans} NaN and {infinities} infinite of {tensor.numel()} values"


def bad_stored(data: NDArray[np.uint8], code: str) -> tuple[int, int]:
    """How many of the numbers in stored bytes are NaN, and how many infinite; none of integers."""
    infinite: Any = INFINITE.get(code)
    if infinite is None or not len(data):
        return 0, 0
    bits = data.view(infinite.dtype)
    magnitudes = bits & (np.iinfo(infinite.dtype).max >> 1)
    if magnitudes.max() < infinite:
        return 0, 0
    nans, infinities = magnitudes > infinite, magnitudes == infinite
    return int(np.count_nonzero(nans)), int(np.count_nonzero(infinities))
