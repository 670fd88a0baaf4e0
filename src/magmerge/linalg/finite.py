"""Whether all entries of a tensor are finite, and how many are not."""

from __future__ import annotations

import math

from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # A sum that is finite has finite terms; one that is not may only be too large.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def count_of_bad(tensor: Tensor) -> str:
    """How many entries are not finite, in words."""
    nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{nans} NaN and {infinities} infinite of {tensor.numel()} values"
