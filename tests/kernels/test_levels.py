"""The same bits at each level, from each compiler, on each processor (scripts/arm64.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Threshold
from magmerge.kernels import compile as compiling
from magmerge.kernels import library

merging = pytest.importorskip("magmerge.kernels.merging")
core = pytest.importorskip("magmerge.core.fused")
arguments = pytest.importorskip("magmerge.kernels.arguments")

LEVELS = [*compiling.LEVELS.get(compiling.this_machine().processor, ())]
ROWS, COLUMNS, EXPERTS = 37, 211, 3
FORMATS = (0, 1, 2)
"""float32, bfloat16, float16, as kernels.c numbers them."""
KNOWN = {
    "all": "2b348929c154450a",
    "beyond": "6f6e695406b7ec72",
    "band": "80fe3f583c18fb5a",
}
"""What all of them gave: gcc 12 and clang 22 on x86-64, clang 22 on arm64."""


def numbers(draw: np.random.RandomState, size: float) -> NDArray[np.float32]:
    """Exact fractions, so that the inputs are the same on every machine."""
    whole = draw.randint(-(2**20), 2**20, ROWS * COLUMNS)
    return (whole * (size / 2**20)).astype(np.float32)


def stored(values: NDArray[np.float32], code: int) -> NDArray[np.uint8]:
    if code == 0:
        return values.view(np.uint8)
    if code == 2:
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def inputs(code: int) -> Any:
    """A base and experts near it, in one stored format."""
    draw = np.random.RandomState(code)
    base = numbers(draw, 2.0**-5)
    experts = [stored(base + numbers(draw, 2.0**-8), code) for _ in range(EXPERTS)]
    formats = [code] * EXPERTS
    return arguments.Inputs(ROWS * COLUMNS, 0, experts, formats, stored(base, code), code)


def merges(keep: str) -> Iterator[Any]:
    """Every way to make one of what stays."""
    ranks = ("all", "beyond", "band").index(keep)
    thresholds = [[Threshold(size, 0)] * EXPERTS for size in (2.0**-9, 2.0**-8.5)][:ranks]
    for weights, combine, mean, scaling in product(
        ((1.0, 1.0, 1.0), (1.0, 0.5, 0.3)),
        ("sum", "plain", "weighted"),
        (True, False),
        ("as_is", "multiply", "divide"),
    ):
        yield core.Fused(
            weights=weights,
            keep=keep,
            thresholds=thresholds,
            factors=(1.1, 1.2, 1.3) if mean else None,
            combine=combine,
            mean=mean,
            scaling=scaling,
            scale=1.8,
        )


def digest(keep: str) -> str:
    """Of all results, in all formats, plain and calibrated, and of what the record tells."""
    whole = hashlib.sha256()
    for given, fused, code in product(map(inputs, FORMATS), merges(keep), FORMATS):
        out = np.zeros(given.entries * (2 if code else 4), np.uint8)
        squares = merging.merged(fused, given, 512, code, out)
        assert squares is not None
        whole.update(out.tobytes() + np.array(squares).tobytes())
        for target in ("ellipsoid", "sphere"):
            form = merging.Calibration(target, "grow")
            tally = merging.calibrated(fused, form, given, COLUMNS, code, out)
            assert tally is not None
            whole.update(out.tobytes())
            for part in tally:
                whole.update(part.tobytes())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("keep", KNOWN)
def test_the_bits_are_known(keep: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library.outcome().library is None:
        pytest.skip("there is no library here")
    monkeypatch.setenv(library.VARIABLE, level)
    try:
        library.load()
    except ParameterError:
        pytest.skip("this processor does not have it")
    assert digest(keep) == KNOWN[keep]
