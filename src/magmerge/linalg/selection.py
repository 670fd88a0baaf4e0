"""Entries by magnitude: an exact threshold without a sort, what lies beyond it, ranks in rows."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Threshold

WORD = 32
Array = NDArray[Any]
Entries = Any
"""A torch tensor [entries] on any device, or an array of numpy's."""


def kept_count(density: float, entries: int) -> int:
    """ceil(density * entries), without the rounding of a density like 0.07 in binary."""
    return math.ceil(Fraction(str(density)) * entries)


def whole_share(share: float, entries: int) -> int:
    """floor(share * entries), without the rounding of a share like 0.29 in binary."""
    return math.floor(Fraction(str(share)) * entries)


def largest(
    values: Float[Tensor, "*shape"], threshold: Threshold, start: int = 0
) -> Float[Tensor, "*shape"]:
    """`values` with every entry that is not beyond the threshold in magnitude set to zero.

    `start` is the place of the first entry in the layer that the threshold is of.
    """
    value, until, rounded = threshold
    if rounded and values.dtype == torch.float64:
        kept = largest(values.to(torch.float32), threshold, start)
        return values * kept.bool()
    if value > 0 and until >= start + values.numel():
        value = next_below(value, np.float64 if values.dtype == torch.float64 else np.float32)
    if value <= 0:
        return values.clone()
    kept = torch.nn.functional.hardshrink(values, value)
    if start < until < start + values.numel():
        flat, out = values.reshape(-1), kept.reshape(-1)
        equal = torch.from_numpy(places_of(flat[: until - start].abs(), value)).to(flat.device)
        out[equal] = flat[equal]
    return kept


def next_below(value: float, dtype: Any) -> float:
    """The greatest number of this format of numpy's that is smaller than `value`, which is
    positive.
    """
    return float(np.nextafter(dtype(value), dtype(0)))


def count_above(magnitudes: Entries, bound: float) -> int:
    """How many entries are greater than `bound`, a number of their format."""
    mask = comparable(magnitudes) > bound
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.sum())


def places_of(magnitudes: Entries, value: float) -> Array:
    """Where this value is, in rising order."""
    return on_cpu(_places(comparable(magnitudes) == value))


def values_between(magnitudes: Entries, low: float, high: float) -> Array:
    """The entries in [low, high]; of what is on an accelerator nothing else is moved."""
    array = comparable(magnitudes)
    return on_cpu(array[_places((array >= low) & (array <= high))])


def comparable(values: Entries) -> Any:
    """The same: what is on the CPU by numpy, which compares several times as fast as torch."""
    return values.detach().numpy() if isinstance(values, Tensor) and values.is_cpu else values


def on_cpu(values: Entries) -> Array:
    """The same as an array of numpy's."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _places(mask: Any) -> Any:
    """Where a mask is true, in rising order, on its device."""
    if isinstance(mask, np.ndarray):
        return np.flatnonzero(mask)
    return mask.nonzero().reshape(-1)


def nth_largest(values: Entries, *ranks: int) -> list[float]:
    """The values of these ranks, from 1, the largest; a list with one for each rank."""
    places = [len(values) - rank for rank in ranks]
    ordered = np.partition(on_cpu(values), places)
    return [float(ordered[place]) for place in places]


def tallied(values: Array) -> tuple[Array, Array]:
    """Each value once, in rising order, and how often it occurs."""
    # numpy's own `unique` does the same in twice the time.
    if not len(values):
        return values, np.zeros(0, np.intp)
    ordered = np.sort(values)
    changes = 1 + np.flatnonzero(ordered[1:] != ordered[:-1])
    bounds = np.concatenate([[0], changes, [len(ordered)]])
    return ordered[bounds[:-1]], bounds[1:] - bounds[:-1]


def weighted_rank(values: Array, counts: Array, rank: int) -> float:
    """The `rank`-th largest of values that occur so often."""
    order = np.argsort(values)[::-1]
    return float(values[order[np.searchsorted(np.cumsum(counts[order]), rank)]])


def bits_of(magnitudes: Array) -> Array:
    """The bit patterns of magnitudes: whole numbers of the same order."""
    return magnitudes.view(f"u{magnitudes.itemsize}").astype(np.int64)


def float_of_bits(bits: int, dtype: Any) -> float:
    """The number of this format of numpy's whose bit pattern it is."""
    return float(np.array(bits, dtype=f"u{np.dtype(dtype).itemsize}").view(dtype))


def bin_of_rank(counts: Array, rank: int) -> int:
    """The bin of the `rank`-th largest entry, from 1."""
    above = np.cumsum(counts[::-1])
    return len(counts) - 1 - int(np.searchsorted(above, rank))


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


def _order(bits: Array) -> Array:
    """The columns of each row in rising order: pattern and column as one number, sorted."""
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(WORD)
    keys |= np.arange(bits.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64((1 << WORD) - 1)
    return keys.view(np.int64)
