"""Which rows are drawn: by seed and name alone, the same with every version of every library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from magmerge.draws import derive_seed
from magmerge.errors import ParameterError


def drawing_order(seed: int, name: str, count: int) -> npt.NDArray[np.int64]:
    """All `count` rows in the order in which they are drawn; the first N of it are a draw of N.

    Row i's key is word i of the SFC64 stream seeded with (seed, name); the rows are sorted by
    their keys. numpy keeps the raw words of its bit generators the same from version to version.
    """
    keys = np.random.SFC64(derive_seed(seed, "samples", name)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def check_count(samples: int | None, seed: int) -> None:
    """ParameterError unless `samples` is at least 1 (or None for all) and `seed` an integer."""
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise ParameterError(
            f"{samples} samples", remedy="draw one or more with --samples (samples=)"
        )
    if not isinstance(seed, int):
        raise ParameterError(f"the seed is {seed!r}", remedy="give a whole number")
