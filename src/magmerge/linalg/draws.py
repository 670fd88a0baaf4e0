"""Random draws that depend on a seed and a place alone: not on threads, pieces or device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from magmerge.core.lazy import Float, Int, Tensor, torch

CHUNK = 1 << 16
"""Entries that one generator draws for."""
BITS = 31


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from `parts`, such as (seed, tensor name, expert index)."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def chunk_states(seeds: Sequence[int], start: int, stop: int) -> NDArray[np.uint64]:
    """The states that the generators of the chunks of these places begin with, for each seed."""
    chunks = range(start // CHUNK, max(-(-stop // CHUNK), start // CHUNK + 1))
    states = [
        [_generator(seed, chunk * CHUNK).state["state"]["state"] for chunk in chunks]
        for seed in seeds
    ]
    return np.array(states, np.uint64)


def _generator(seed: int, first: int) -> np.random.SFC64:
    """Of the chunk whose first place this is."""
    return np.random.SFC64(derive_seed(seed, first))


def integers(seed: int, count: int, start: int = 0) -> Int[Tensor, "count"]:
    """Uniform integers of 31 bits for the places [start, start + count), as int32 on the CPU.

    Place i depends on (seed, i) alone, since each run of CHUNK places has a generator of its own.
    """
    draws = np.empty(count, dtype=np.int32)
    for chunk in range(start // CHUNK, -(-(start + count) // CHUNK)):
        first = chunk * CHUNK
        words = _generator(seed, first).random_raw(CHUNK // 2)
        low, high = max(start, first), min(start + count, first + CHUNK)
        draws[low - start : high - start] = words.view(np.int32)[low - first : high - first]
    return torch.from_numpy(draws).bitwise_and_((1 << BITS) - 1)


def uniforms(seed: int, shape: Sequence[int], start: int = 0) -> Float[Tensor, "*shape"]:
    """Uniform float32 in [0, 1), multiples of 2^-24, for the places from `start` on."""
    draws = integers(seed, math.prod(shape), start).bitwise_right_shift_(BITS - 24)
    return (draws.to(torch.float32) * 2.0**-24).reshape(tuple(shape))


def drop(
    values: Float[Tensor, "*shape"], seed: int, keep: float, start: int = 0
) -> Float[Tensor, "*shape"]:
    """`values` with each entry kept with probability `keep`, else zero."""
    if keep >= 1:
        return values.clone()
    # -1, which is all bits set, for each place that is kept, else 0.
    bits = integers(seed, values.numel(), start).sub_(round(keep * 2**BITS))
    bits = bits.bitwise_right_shift_(BITS).to(values.device).reshape(values.shape)
    if values.dtype == torch.float32:
        return values.contiguous().view(torch.int32).bitwise_and(bits).view(torch.float32)
    return values * bits.bool()


def chances_by_rank(count: int, density: float, epsilon: float) -> NDArray[np.float64]:
    """The chance to stay of each rank, from the smallest entry to the largest."""
    if count == 1:
        return np.full(1, density)
    steps = np.arange(count, dtype=np.float64) / (count - 1)
    return density - epsilon + 2 * epsilon * steps
