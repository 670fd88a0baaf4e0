"""Part of a product of two factors, with the same bits whatever part is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Rows that are multiplied together."""


def rows_between(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of the flattened product, in memory of their own.

    Rows are multiplied TILE at a time from the first on, whatever is asked for: products of other
    sizes may differ in their last bits.
    """
    import torch

    row = right.shape[1]
    if start == stop:
        return left.new_empty(0)
    first, last = start // row // TILE * TILE, -(-stop // row)
    right = right.contiguous()
    tiles = [left[i : i + TILE].contiguous() @ right for i in range(first, last, TILE)]
    product = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
    return product.reshape(-1)[start - first * row : stop - first * row].clone()
