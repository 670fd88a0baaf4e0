"""A factor folded into weights is the factor on features, for every kind of layer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import magmerge
from magmerge.core.errors import MagmergeWarning
from tests.live.layer_cases import CASES, Case

PLAIN = {"method": "fsc", "params": {"check": "off"}}
"""The paper's FSC, which estimates from all samples."""
SETTINGS: dict[str, Any] = {"calibrate": PLAIN, "gate": "off", "method": "average"}


class Net(nn.Module):
    """One layer in a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def tuned(model: nn.Module, size: float = 0.3) -> nn.Module:
    """A copy whose parameters have moved."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=size)
    return other


def models(case: Case, experts: int = 3) -> tuple[nn.Module, dict[str, nn.Module], dict[str, Any]]:
    torch.manual_seed(0)
    base = Net(case.make()).eval()
    names = [f"expert-{k}" for k in range(experts)]
    return (
        base,
        {name: tuned(base).eval() for name in names},
        {name: case.inputs() for name in names},
    )


def merged_by(base: nn.Module, experts: dict[str, nn.Module], **settings: Any) -> magmerge.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MagmergeWarning)
        return magmerge.merge(base=base, experts=experts, **{**SETTINGS, **settings})


def loaded(base: nn.Module, result: magmerge.Result) -> nn.Module:
    model = copy.deepcopy(base)
    model.load_state_dict(result.state_dict())
    return model.eval()


def gain(base: nn.Module, expert: nn.Module, merge: nn.Module, x: Tensor, axis: int) -> float:
    """The definition, token by token in float64, from the three models' outputs."""
    wide = [copy.deepcopy(model).double() for model in (base, expert, merge)]
    x = x.double() if x.is_floating_point() else x
    y0, yk, ym = (model(x).detach().double().movedim(axis, -1) for model in wide)
    ratios = []
    for a, b in zip((yk - y0).flatten(0, -2), (ym - y0).flatten(0, -2), strict=True):
        if float(a.norm()) and float(b.norm()):
            ratios.append(float(a.norm() / b.norm()))
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize("name", CASES)
def test_the_factor_is_the_mean_gain_of_the_experts(name: str) -> None:
    base, experts, data = models(CASES[name])
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data=data)
    axis = CASES[name].features
    wanted = [gain(base, experts[n], plain, data[n], axis) for n in experts]
    records = [record for record in result.records if record.calibrated_by]
    assert records
    for record in records:
        assert record.xi == pytest.approx(sum(wanted) / len(wanted), rel=2e-4)
        assert record.factors[0].experts == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_folded_equals_hooked(name: str) -> None:
    base, experts, data = models(CASES[name])
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data=data)
    xi = next(record.xi for record in result.records if record.calibrated_by)
    x = CASES[name].inputs()
    y0, ym, folded = (model(x) for model in (base, plain, loaded(base, result)))
    torch.testing.assert_close(folded, y0 + xi * (ym - y0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_one_expert_as_the_merge_keeps_everything(name: str) -> None:
    base, experts, data = models(CASES[name], experts=1)
    result = merged_by(base, experts, data=data)
    for record in result.records:
        assert record.xi == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [0.1, 4.0])
def test_the_factor_undoes_a_factor_on_the_merge(name: str, factor: float) -> None:
    base, experts, data = models(CASES[name])
    settings = {"method": "task_arithmetic", "data": data}
    one = merged_by(base, experts, params={"lambda": 1.0}, **settings)
    other = merged_by(base, experts, params={"lambda": factor}, **settings)
    pairs = [p for p in zip(one.records, other.records, strict=True) if p[0].calibrated_by]
    assert pairs
    for a, b in pairs:
        assert b.xi == pytest.approx(a.xi / factor, rel=1e-4)


@pytest.mark.parametrize("name", ["linear", "convolution 2d", "embedding", "layer norm"])
def test_estimates_converge_with_more_samples(name: str) -> None:
    base, experts, _ = models(CASES[name])
    many = {n: torch.cat([CASES[name].inputs() for _ in range(200)]) for n in experts}
    whole = merged_by(base, experts, data=many).records[0].xi

    def error(samples: int) -> float:
        """Summed over eight draws."""
        total = 0.0
        for draw in range(8):
            rows = slice(draw * samples, (draw + 1) * samples)
            some = {name: tensor[rows] for name, tensor in many.items()}
            total += abs(merged_by(base, experts, data=some).records[0].xi - whole)
        return total

    assert error(48) < error(2) / 2
    assert error(48) / 8 < 0.05 * whole


def test_norms_differ_where_features_do() -> None:
    base, experts, data = models(CASES["linear"])
    euclidean = merged_by(base, experts, data=data)
    absolute = merged_by(
        base,
        experts,
        data=data,
        calibrate={"method": "fsc", "params": {"norm": "l1", "check": "off"}},
    )
    assert euclidean.records[0].xi != absolute.records[0].xi
    assert euclidean.records[0].xi == pytest.approx(absolute.records[0].xi, rel=0.3)
