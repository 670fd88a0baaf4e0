from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.adapters.factored import rows_between

LEFT = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
RIGHT = torch.randn(7, 31, generator=torch.Generator().manual_seed(1))
WHOLE = rows_between(LEFT, RIGHT, 0, 200 * 31)


def test_all_of_it_is_the_product() -> None:
    assert torch.allclose(WHOLE.reshape(200, 31), LEFT @ RIGHT, atol=1e-6)


@settings(deadline=None)
@given(start=st.integers(0, 6200), length=st.integers(0, 3000))
def test_any_part_has_the_bits_of_the_whole(start: int, length: int) -> None:
    stop = min(start + length, 6200)
    assert torch.equal(rows_between(LEFT, RIGHT, start, stop), WHOLE[start:stop])
