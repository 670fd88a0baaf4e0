"""FeatCal against its formula on whole weights in float64, layer by layer in forward order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.calibrators.featcal import featcal
from magmerge.core.errors import ParameterError
from tests.calibrators.test_regmean import family, fed

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


def solved(
    pairs: list[tuple[Tensor, Tensor]], weights: list[Tensor], anchor: Tensor, share: float
) -> Tensor:
    """The weight for inputs (merged, expert) of each task, drawn to the anchor with ridge 0.05."""
    n = anchor.flatten(1).shape[1]
    left = 0.05 * torch.eye(n, dtype=torch.float64)
    right = 0.05 * anchor.flatten(1).T
    for (x, e), weight in zip(pairs, weights, strict=True):
        target = (1 - share) * x + share * e
        size = (x.T @ x).norm()
        left = left + x.T @ x / size
        right = right + x.T @ target / size @ weight.flatten(1).T
    return torch.linalg.solve(left, right).T.reshape(anchor.shape)


@pytest.mark.parametrize(("share", "rho"), [(0.25, 1.0), (0.6, 2.0)])
def test_each_layer_is_solved_for_what_those_before_it_feed(share: float, rho: float) -> None:
    base, experts, samples = family(3)
    start = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    found = magmerge.merge(
        base=base, experts=experts, method="average", data=samples,
        calibrate={"method": "featcal", "params": {"share": share, "rho": rho}},
    ).state_dict()  # fmt: skip
    own = {name: tensor.double() for name, tensor in base.state_dict().items()}
    states = [
        {name: tensor.double() for name, tensor in expert.state_dict().items()}
        for expert in experts.values()
    ]
    merged = [fed(found, x) for x in samples.values()]
    inputs = [fed(state, x) for state, x in zip(states, samples.values(), strict=True)]
    for layer in ("conv", "first", "second"):
        name = f"{layer}.weight"
        pairs = [(m[name], e[name]) for m, e in zip(merged, inputs, strict=True)]
        anchor = own[name] + rho * (start[name].double() - own[name])
        expected = solved(pairs, [state[name] for state in states], anchor, share)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)
        if layer == "second":
            continue
        biases = [
            (((1 - share) * x + share * e) @ state[name].flatten(1).T + state[f"{layer}.bias"])
            .sub(x @ expected.flatten(1).T)
            .mean(0)
            for (x, e), state in zip(pairs, states, strict=True)
        ]
        torch.testing.assert_close(
            found[f"{layer}.bias"].double(), torch.stack(biases).mean(0), rtol=1e-4, atol=1e-5
        )


def test_no_sums_are_a_users_mistake() -> None:
    with pytest.raises(ParameterError, match="no products"):
        featcal(torch.zeros(2, 3, 3), torch.zeros(3, 3))
