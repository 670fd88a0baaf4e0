"""Entries by magnitude: an exact threshold without a sort, what lies beyond it, ranks in rows."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magmerge.core.lazy import Float, Int, Shaped, Tensor, torch
from magmerge.core.parameters import Threshold

HALF = 16
HALF_BINS = 1 << HALF
WORD = 32


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
        value = next_below(value, values.dtype)
    if value <= 0:
        return values.clone()
    kept = torch.nn.functional.hardshrink(values, value)
    if start < until < start + values.numel():
        flat, out = values.reshape(-1), kept.reshape(-1)
        equal = places_of(flat[: until - start].abs(), value).to(flat.device)
        out[equal] = flat[equal]
    return kept


def next_below(value: float, dtype: torch.dtype) -> float:
    """The greatest number of this format that is smaller than `value`, which is positive."""
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.zeros((), dtype=dtype)))


def count_above(magnitudes: Float[Tensor, "entries"], bound: float) -> int:
    """How many entries are greater than `bound`, a number of their format."""
    return _count(_array(magnitudes) > bound)


def count_equal(magnitudes: Float[Tensor, "entries"], value: float) -> int:
    """How many entries are `value`."""
    return _count(_array(magnitudes) == value)


def places_of(magnitudes: Float[Tensor, "entries"], value: float) -> Int[Tensor, "equal"]:
    """Where this value is, in rising order; on the CPU."""
    return _places(_array(magnitudes) == value).cpu()


def tally_between(
    magnitudes: Float[Tensor, "entries"], low: float, high: float
) -> tuple[Float[Tensor, "values"], Int[Tensor, "values"]]:
    """The different values in [low, high], rising, and how often each occurs; on the CPU."""
    return tally(_within(magnitudes, low, high))


def tally(
    values: Shaped[Tensor, "entries"],
) -> tuple[Shaped[Tensor, "values"], Int[Tensor, "values"]]:
    """The different values, rising, and how often each occurs; on the CPU."""
    different, counts = np.unique(values.cpu().numpy(), return_counts=True)
    return torch.from_numpy(different), torch.from_numpy(counts)


def _array(values: Tensor) -> Any:
    """The same to compare: on the CPU by numpy, which is several times as fast as torch."""
    return values.numpy() if values.is_cpu else values


def _within(values: Tensor, low: float | int, high: float | int) -> Tensor:
    array = _array(values)
    return values[_places((array >= low) & (array <= high))]


def _count(mask: Any) -> int:
    count = torch.count_nonzero if isinstance(mask, Tensor) else np.count_nonzero
    return int(count(mask))


def _places(mask: Any) -> Tensor:
    """Where a mask is true, in rising order, on its device."""
    if isinstance(mask, Tensor):
        return torch.nonzero(mask).reshape(-1)
    return torch.from_numpy(np.flatnonzero(mask))


def nth_largest(values: Float[Tensor, "entries"], *ranks: int) -> list[float]:
    """The values of these ranks, from 1, the largest; a list with one for each rank."""
    places = [len(values) - rank for rank in ranks]
    ordered = np.partition(values.cpu().numpy(), places)
    return [float(ordered[place]) for place in places]


def weighted_rank(
    values: Float[Tensor, "values"], counts: Int[Tensor, "values"], rank: int
) -> float:
    """The `rank`-th largest of values that occur so often."""
    ordered, order = values.sort(descending=True)
    reached = counts[order].cumsum(0, dtype=torch.int64)
    return float(ordered[torch.searchsorted(reached, rank)])


def magnitude_bits(values: Float[Tensor, "entries"]) -> Int[Tensor, "entries"]:
    """The bit patterns of float32 magnitudes: integers of the same order."""
    return values.abs().view(torch.int32)


def lower_halves(bits: Int[Tensor, "entries"], high: int) -> Int[Tensor, "within"]:
    """The lower halves of those patterns whose upper half is `high`."""
    low = high << HALF
    return _within(bits, low, low + HALF_BINS - 1) - low


def float_of_bits(high: int, low: int) -> float:
    """The float32 whose bit pattern has these halves."""
    return float(torch.tensor((high << HALF) | low, dtype=torch.int32).view(torch.float32))


def bin_of_rank(counts: Int[Tensor, "bins"], rank: int) -> tuple[int, int]:
    """The bin of the `rank`-th largest entry (from 1), and its rank within that bin."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, rank))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, rank - before


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
