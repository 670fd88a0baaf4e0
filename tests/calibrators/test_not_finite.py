"""Features that are not finite: their layer stays as merged and is told, the others are solved."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import magmerge
from magmerge.core.errors import MagmergeError

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")

NAMES = ["regmean", "regmean_plusplus", "featcal", "regression_samples"]


class Net(nn.Module):
    """What feeds the second layer is a logarithm of numbers that may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.log(self.first(x)))
        return out


def family() -> tuple[Net, dict[str, Net]]:
    torch.manual_seed(0)
    base = Net()
    experts = {name: copy.deepcopy(base) for name in "xy"}
    with torch.no_grad():
        for expert in experts.values():
            for parameter in expert.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return base, experts


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_is_fed_nan_stays_as_merged_and_is_told(name: str) -> None:
    base, experts = family()
    data = {name: torch.randn(8, 6) for name in experts}
    plain = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    result = magmerge.merge(base=base, experts=experts, method="average", calibrate=name, data=data)
    found = result.state_dict()
    assert not torch.equal(found["first.weight"], plain["first.weight"])
    for second in ("second.weight", "second.bias"):
        assert torch.equal(found[second], plain[second])
    told = [(one.layer, one.reason) for one in result.uncovered]
    assert ("second", "samples feed it NaN or infinity") in told


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_an_error(name: str, value: float) -> None:
    base, experts = family()
    data = {"x": torch.randn(8, 6), "y": torch.full((8, 6), value)}
    with pytest.raises(MagmergeError, match="NaN or infinity"):
        magmerge.merge(base=base, experts=experts, method="average", calibrate=name, data=data)
