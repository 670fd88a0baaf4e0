"""Samples and calls that are not as usual: one message, or told, or measured all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.live.units import RunRecord
from tests.live.test_compound import family, records_of
from tests.live.test_exactness import merged_by
from tests.live.test_unusual import Net


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_told(bad: float) -> None:
    torch.manual_seed(0)
    base = Net(layer=nn.Linear(6, 4)).eval()
    experts = family(base)
    good, wrong = torch.randn(4, 6), torch.full((4, 6), bad)
    one, other = experts
    with pytest.raises(MagmergeError, match="finite"):
        merged_by(base, experts, data={one: [good], other: [wrong]})
    with pytest.raises(MagmergeError, match="NaN"):
        merged_by(base, experts, data={name: [wrong] for name in experts})


@pytest.mark.parametrize(
    "data", [[{"wrong": torch.randn(2, 6)}], [torch.ones(2, 6).long()], [torch.randn(2, 7)]]
)
@pytest.mark.parametrize("order", ["once", "forward"])
def test_inputs_that_the_model_does_not_take_are_one_message(data: Any, order: str) -> None:
    torch.manual_seed(0)
    base = Net(layer=nn.Linear(6, 4)).eval()
    experts = family(base)
    given = {name: list(data) for name in experts}
    with pytest.raises(MagmergeError, match="cannot be run on the samples of"):
        merged_by(base, experts, data=given, order=order)


def test_experts_that_come_to_layers_in_another_order_are_told() -> None:
    torch.manual_seed(0)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, turn: bool) -> Tensor:
            return self.a(self.b(x)) if turn else self.b(self.a(x))

    base = Turned().eval()
    experts = family(base)
    x = torch.randn(4, 6)
    data = {name: [(x, bool(k))] for k, name in enumerate(experts)}
    result = merged_by(base, experts, data=data, order="forward")
    assert any("only some experts" in one.reason for one in result.uncovered)
    assert not merged_by(base, experts, data=data).uncovered


def test_a_generator_serves_all_experts_and_a_module_needs_no_builder() -> None:
    torch.manual_seed(0)
    base = Net(layer=nn.Linear(6, 4)).eval()
    experts = family(base)
    batches = (torch.randn(2, 6) for _ in range(2))
    assert records_of(merged_by(base, experts, data=batches))
    with pytest.raises(ParameterError, match="a module in memory"):
        merged_by(base, experts, data=torch.randn(2, 6), build="nowhere:f")
    with pytest.raises(ParameterError, match="samples is"):
        magmerge.merge(
            base=base, experts=experts, calibrate="fsc", data=torch.randn(2, 6), samples="8"
        )


def test_attention_that_is_sensitive_is_so_with_its_projection() -> None:
    torch.manual_seed(0)
    base = Net(attn=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    experts = family(base)
    x = torch.randn(2, 5, 8)
    found = magmerge.sensitivity(base=base, experts=experts, data=x, alpha=3)
    assert "attn.self_attn" in found.layers
    result = merged_by(
        base, experts, data=x, calibrate="fsc", gate="on", sensitive=["attn.self_attn"]
    )
    marked = {record.name.rpartition(".")[2] for record in result.records if record.sensitive}
    assert marked == {"in_proj_weight", "in_proj_bias", "weight", "bias"}


class PathBlock(nn.Module):
    """A block whose own keywords are those that a careless wrapper would use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, path: object = None, forward: object = None) -> torch.Tensor:
        return self.linear(x)


def test_blocks_may_have_any_keywords() -> None:
    blocks = nn.ModuleList([PathBlock(), PathBlock()])

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = blocks

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.layers:
                x = block(x, path=None, forward=None)
            return x

    model, record, x = Stack().eval(), RunRecord(), torch.randn(2, 4)
    with torch.no_grad():
        with record.recording(model):
            whole = model(x)
        with record.resuming(model, 1):
            assert torch.equal(model(x), whole)
