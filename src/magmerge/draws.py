"""Random masks that depend on a seed and a position alone: not on threads, blocks or device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

CHUNK = 1 << 16


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from `parts`, such as (seed, tensor name, expert index)."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def keep_mask(seed: int, shape: Sequence[int], keep: float) -> Bool[Tensor, "*shape"]:
    """Independent draws, each True with probability `keep`, on the CPU.

    Entry i depends on (seed, i) alone, since each run of CHUNK entries has a generator of its own.
    """
    count = math.prod(shape)
    mask = torch.empty(count, dtype=torch.bool)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        generator = torch.Generator().manual_seed(derive_seed(seed, start))
        mask[start:stop] = torch.rand(CHUNK, generator=generator)[: stop - start] < keep
    return mask.reshape(tuple(shape))
