"""RegMean and RegMean++ against plain sums in float64, through the front door."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import magmerge
from magmerge.calibrators.regmean import products, regmean
from magmerge.core.errors import ParameterError
from tests.conftest import State
from tests.live.test_running import texts

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


class Net(nn.Module):
    """A convolution, a linear layer and another one, each fed by the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(self.conv(x)).mean((2, 3))
        out: Tensor = self.second(torch.tanh(self.first(rows)))
        return out


def family(count: int) -> tuple[Net, dict[str, Net], dict[str, Tensor]]:
    """A base, experts near it, and each one's samples."""
    torch.manual_seed(0)
    base, experts, samples = Net(), {}, {}
    for k in range(count):
        expert = Net()
        expert.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        experts[f"e{k}"] = expert
        samples[f"e{k}"] = torch.randn(20, 2, 7, 5)
    return base, experts, samples


def fed(net: State, x: Tensor) -> dict[str, Tensor]:
    """What each layer of such a net is fed, in float64."""
    own = {name: tensor.double() for name, tensor in net.items()}
    x = x.double()
    patches = functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    conv = functional.conv2d(x, own["conv.weight"], own["conv.bias"], stride=2, padding=1)
    rows = torch.tanh(conv).mean((2, 3))
    hidden = torch.tanh(rows @ own["first.weight"].T + own["first.bias"])
    return {"conv.weight": patches, "first.weight": rows, "second.weight": hidden}


def solved(inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """RegMean of whole weights as its paper has it, in float64."""
    left, right = 0.0, 0.0
    for x, weight in zip(inputs, weights, strict=True):
        gram = x.T @ x
        gram = 0.9 * gram + 0.1 * torch.diag(torch.diag(gram))
        left, right = left + gram, right + gram @ weight.double().flatten(1).T
    return torch.linalg.solve(left, right).T.reshape(weights[0].shape)


def test_regmean_solves_on_what_each_experts_own_layers_are_fed() -> None:
    base, experts, samples = family(3)
    found = magmerge.merge(
        base=base, experts=experts, method="average", calibrate="regmean", data=samples
    ).state_dict()
    states = {name: expert.state_dict() for name, expert in experts.items()}
    inputs = {name: fed(states[name], samples[name]) for name in experts}
    for layer in ("conv.weight", "first.weight", "second.weight"):
        expected = solved(
            [own[layer] for own in inputs.values()], [state[layer] for state in states.values()]
        )
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-4, atol=1e-5)
    mean = torch.stack([state["first.bias"] for state in states.values()]).mean(0)
    torch.testing.assert_close(found["first.bias"], mean)


def test_regmean_plusplus_feeds_each_layer_what_is_solved_before_it() -> None:
    base, experts, samples = family(2)
    found = magmerge.merge(
        base=base, experts=experts, method="average", calibrate="regmean++", data=samples
    ).state_dict()
    for layer in ("conv.weight", "first.weight", "second.weight"):
        expected = solved(
            [fed(found, x)[layer] for x in samples.values()],
            [expert.state_dict()[layer] for expert in experts.values()],
        )
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-4, atol=1e-5)


def test_features_that_no_sample_has_stay_as_merged() -> None:
    deltas, merged = torch.randn(2, 5, 4), torch.randn(5, 4)
    x = torch.randn(30, 4) * torch.tensor([1.0, 1.0, 0.0, 1.0])
    found = regmean(deltas, merged, sums=torch.stack([products(x)] * 2))
    torch.testing.assert_close(found[:, 2], merged[:, 2])
    torch.testing.assert_close(found[:, 0], deltas.mean(0)[:, 0])


@pytest.mark.parametrize("tokens", [1, 16, 5000])
def test_the_whole_of_what_features_share_counts_whatever_the_tokens(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, 64, generator=generator)
    x[:, :, 1] = x[:, :, 0]
    deltas, sums = torch.randn(2, 5, 64, generator=generator), torch.stack([*map(products, x)])
    found = regmean(deltas, deltas.mean(0), sums=sums, off_diagonal=1.0)
    rows, targets = x.double(), deltas.double()
    answers = torch.cat([one @ own.T for one, own in zip(rows, targets, strict=True)])
    best = torch.linalg.lstsq(rows.flatten(0, 1), answers, driver="gelsd").solution
    torch.testing.assert_close(
        rows.flatten(0, 1) @ found.double().T, rows.flatten(0, 1) @ best, rtol=1e-3, atol=1e-3
    )


def test_no_sums_are_a_users_mistake() -> None:
    with pytest.raises(ParameterError, match="no products"):
        regmean(torch.zeros(2, 3, 3), torch.zeros(3, 3))


def test_a_grouped_convolution_stays_as_merged_and_is_told() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.conv(x).mean((2, 3)))
            return out

    torch.manual_seed(1)
    base, experts = Grouped(), [Grouped(), Grouped()]
    result = magmerge.merge(
        base=base, experts=experts, method="average", calibrate="regmean",
        data=torch.randn(5, 4, 6, 6),
    )  # fmt: skip
    plain = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    assert torch.equal(result.state_dict()["conv.weight"], plain["conv.weight"])
    assert not torch.equal(result.state_dict()["out.weight"], plain["out.weight"])
    assert [(u.layer, u.reason) for u in result.uncovered] == [
        ("conv", "a convolution of several groups is not solved for")
    ]


def test_the_plan_states_the_experts_blocks_and_the_sums() -> None:
    base, experts, samples = family(3)
    live = {
        name: magmerge.plan(
            base=base, experts=experts, method="average", calibrate=name, data=samples
        ).live
        for name in ("regmean", "regmean_plusplus", "featcal")
    }
    block, features, outputs = 6 * 18, 18, 6
    assert live["regmean"] - live["regmean_plusplus"] == 4 * 3 * block
    sums = {"regmean": (features + 1) ** 2, "featcal": (features + 1) * (2 * features + 1)}
    more = (4 * 3 + 4 * 8) * (sums["featcal"] - sums["regmean"])
    assert live["featcal"] - live["regmean"] == more + 4 * (6 + 10)
    assert live["regmean_plusplus"] > (4 * 3 + 4 * 8) * sums["regmean"] + 3 * 8 * features * outputs


def test_padding_never_counts_and_offloading_changes_no_bit(tmp_path: Path) -> None:
    from tests.live.test_compound import family as models
    from tests.live.test_running import folders, llama

    base, experts = folders(tmp_path, llama(), models(llama(), 2))
    ids = {name: own[0]["input_ids"] for name, own in texts(experts).items()}
    plain = {name: [{"input_ids": one}] for name, one in ids.items()}
    padded = {
        name: [
            {
                "input_ids": functional.pad(one, (0, 3), value=1),
                "attention_mask": functional.pad(torch.ones_like(one), (0, 3)),
            }
        ]
        for name, one in ids.items()
    }
    options = {"base": base, "experts": experts, "method": "tsv_m"}
    for calibrator in ("regmean", "regmean_plusplus"):
        once, again, away = (
            magmerge.merge(**options, calibrate=calibrator, data=data, offload=offload).state_dict()
            for data, offload in ((plain, False), (padded, False), (plain, True))
        )
        for name, tensor in once.items():
            torch.testing.assert_close(tensor, again[name], rtol=1e-4, atol=1e-5)
            assert torch.equal(tensor, away[name]), name
