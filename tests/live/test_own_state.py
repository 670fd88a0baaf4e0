"""What modules keep between calls is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from magmerge.live.own_state import OwnState


class Counter(nn.Module):
    """Binds its buffer anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return x


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_buffer_that_is_bound_anew_is_another(calls: int) -> None:
    module = Counter()
    state = OwnState(module)
    for _ in range(calls):
        module(torch.zeros(1))
    assert state.check()
    assert not module.seen.any()
    assert not state.check()
