"""The ranks of entries within their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

WORD = 32


def by_rank(
    rows: Float[Tensor, "rows columns"], ladder: Float[Tensor, "columns"]
) -> Float[Tensor, "rows columns"]:
    """For each entry the value of `ladder` at its rank in its row, by magnitude from the smallest.

    Among equals the earlier one has the lower rank.
    """
    if rows.is_cpu and rows.dtype == torch.float32:
        order = torch.from_numpy(_order(rows.abs().view(torch.int32).numpy()))
    else:
        order = rows.abs().argsort(dim=1, stable=True)
    return torch.empty_like(rows).scatter_(1, order, ladder.to(rows).expand(rows.shape))


def _order(bits: NDArray[Any]) -> NDArray[Any]:
    """The columns of each row in rising order: pattern and column as one number, sorted."""
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(WORD)
    keys |= np.arange(bits.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64((1 << WORD) - 1)
    return keys.view(np.int64)
