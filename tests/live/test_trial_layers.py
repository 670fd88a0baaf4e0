"""Layers that are tried: whether half of a change does half of what the change does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError
from tests.live.test_compound import family
from tests.live.test_exactness import merged_by


class Exponential(nn.Module):
    """Not linear in its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.exp()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = Exponential()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x)


@pytest.mark.parametrize("silent", [False, True])
def test_a_layer_that_is_not_linear_is_not_measured(silent: bool) -> None:
    """Also where the first sample is nothing but zeros, to which no weight does anything."""
    torch.manual_seed(0)
    base = Model()
    experts = family(base)
    batch = torch.randn(3, 5, 4)
    if silent:
        batch[0] = 0
    with pytest.raises(MagmergeError, match="does not change in proportion"):
        merged_by(base, experts, data={name: [batch] for name in experts})


def test_a_change_like_the_merge_does_not_hide_that_it_is_not_linear() -> None:
    torch.manual_seed(0)
    base = Model()
    name, expert = next(iter(family(base).items()))
    with pytest.raises(MagmergeError, match="does not change in proportion"):
        merged_by(base, {name: expert}, data={name: [torch.randn(3, 5, 4)]})
