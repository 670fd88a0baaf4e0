"""NaN and infinity, counted in stored bytes as torch counts them."""

from __future__ import annotations

import math

import pytest
import torch

from magmerge.checkpoints.output.writer import stored_bytes
from magmerge.core import dtypes
from magmerge.linalg.finite import bad_stored

INF, NAN = math.inf, math.nan
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, INF, -INF, NAN, -NAN, INF, 65504.0, -3e38]


@pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("values", [SPECIAL, [0.0, -1.0], [INF], [-NAN], []])
def test_nan_and_infinity_are_counted_by_their_bits(code: str, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtypes.torch_dtype(code))
    expected = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    assert bad_stored(stored_bytes(tensor), code) == expected


def test_integers_have_neither() -> None:
    data = stored_bytes(torch.full((8,), -1, dtype=torch.int32))
    assert bad_stored(data, "I32") == (0, 0)
    assert bad_stored(data, "F8_E5M2") == (0, 0)
