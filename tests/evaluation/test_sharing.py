"""Layers that models have in common run once, and nothing of that is seen in the results."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from magmerge.evaluation.sharing import Relay, alike, changed_units


class Block(nn.Module):
    """A residual block that counts its runs."""

    runs = 0

    def __init__(self, width: int = 8, *, inplace: bool = False) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(width, width), nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        Block.runs += 1
        return x + self.act(self.linear(x))


class Stack(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Scaled(Stack):
    """A parameter beside all layers, used before the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Spoiling(nn.Module):
    """Its first layer changes its own input in place, which the last one looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.first = nn.ModuleList([nn.ReLU(inplace=True)])
        self.last = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.last[0](self.first[0](y)) + y


class Hidden(Stack):
    """It looks back at what all its blocks put out, and one of them runs twice."""

    def forward(self, x: Tensor) -> dict[str, object]:
        states = [self.embed(x)]
        for block in (*self.blocks, self.blocks[0]):
            states.append(block(states[-1]))
        return {"states": tuple(states), "last": self.norm(sum(states))}


def variants(model: nn.Module, *changes: str) -> list[nn.Module]:
    """The model, and for each parameter named a copy in which it is changed."""
    found = [model]
    for name in changes:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).add_(0.5)
        found.append(other)
    return found


def run(relay: Relay, x: Tensor) -> list[object]:
    outputs: list[object] = []

    def call(module: nn.Module) -> Tensor:
        outputs.append(module(x))
        return torch.zeros(1)

    with torch.inference_mode(), relay.watched():
        relay.run(call)
    return outputs


@pytest.mark.parametrize("kind", [Stack, Hidden, Scaled, Spoiling])
def test_results_are_those_of_each_model_alone(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    names = [name for name, _ in model.named_parameters()]
    models = variants(model, *names)
    relay = Relay(models, 1 << 30)
    batches = [torch.randn(5, 3) for _ in range(3)]
    with torch.no_grad(), relay.watched():
        relay.trial(lambda module: module(batches[0].clone()))
    for x in batches:
        found = run(relay, x)
        assert len(found) == len(models)
        for module, output in zip(models, found, strict=True):
            with torch.inference_mode():
                assert alike(module(x), output)
    for module in models:
        assert all("forward" not in one.__dict__ for one in module.modules())


def test_only_layers_from_the_first_changed_one_on_run_again() -> None:
    torch.manual_seed(0)
    models = variants(Stack(6), "blocks.4.linear.bias", "norm.weight", "embed.bias")
    Block.runs = 0
    run(Relay(models, 1 << 30), torch.randn(2, 3))
    assert Block.runs == 6 + 2 + 0 + 6


def test_a_change_beside_all_layers_shares_nothing() -> None:
    models = variants(Scaled(), "scale", "blocks.3.linear.weight")
    assert changed_units(models[0], models[1]) is None
    assert changed_units(models[0], models[2]) == {"blocks.3"}
    assert Relay(models, 1 << 30).useful
    assert not Relay(models[:2], 1 << 30).useful


def test_what_is_changed_in_place_is_found_by_the_trial() -> None:
    torch.manual_seed(0)
    models = variants(Spoiling(), "last.0.weight")
    relay, x = Relay(models, 1 << 30), torch.randn(4, 3)
    untried = run(relay, x)
    with torch.no_grad():
        assert not alike(models[1](x), untried[1])
        with relay.watched():
            relay.trial(lambda module: module(x))
    assert not relay.useful
    with torch.inference_mode():
        assert alike(models[1](x), run(relay, x)[1])


def test_a_change_in_place_is_found_where_it_changes_no_value() -> None:
    """All inputs of the trial are positive, so that the layer leaves them as they are."""
    model = Spoiling()
    with torch.no_grad():
        model.embed.weight.fill_(1.0)
        model.embed.bias.fill_(1.0)
    models = variants(model, "last.0.weight")
    relay = Relay(models, 1 << 30)
    with torch.no_grad(), relay.watched():
        relay.trial(lambda module: module(torch.ones(4, 3)))
    assert not relay.useful


def test_no_more_is_kept_than_there_is_room_for() -> None:
    models = variants(Stack(6), "norm.weight")
    one = 2 * 8 * 4
    for room, runs in ((1 << 30, 6), (3 * one, 6 + 4), (0, 6 + 6)):
        Block.runs = 0
        found = run(Relay(models, room), torch.ones(2, 3))
        assert Block.runs == runs
        with torch.inference_mode():
            assert alike(models[1](torch.ones(2, 3)), found[1])


def test_a_layer_whose_output_cannot_be_copied_is_not_shared() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, object]:
            return self.linear(x), (number for number in range(3))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList([Odd()])
            self.last = nn.ModuleList([nn.Linear(8, 8)])

        def forward(self, x: Tensor) -> Tensor:
            return self.last[0](self.first[0](x)[0])

    relay = Relay(variants(Net(), "last.0.weight"), 1 << 30)
    assert relay.useful
    with torch.no_grad(), relay.watched():
        relay.trial(lambda module: module(torch.ones(2, 3)))
    assert not relay.useful


def test_another_order_of_layers_is_run_whole() -> None:
    """The second model takes another way through the same blocks."""
    torch.manual_seed(0)

    class Turning(Stack):
        turned = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for block in reversed(self.blocks) if self.turned else self.blocks:
                x = block(x)
            return self.norm(x)

    models = variants(Turning(), "norm.bias")
    models[1].turned = True
    x = torch.randn(3, 3)
    found = run(Relay(models, 1 << 30), x)
    with torch.inference_mode():
        assert alike(found[-1], models[1](x))


def test_bits_are_compared_not_values() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for module, value in ((one, 0.0), (other, -0.0)):
            module.weight.fill_(value)
            module.bias.fill_(float("nan"))
    spare = nn.Linear(2, 2)
    assert changed_units(nn.Sequential(one, spare), nn.Sequential(other, spare)) == {"0"}
    assert changed_units(nn.Sequential(one), nn.Sequential(other)) is None
    assert not alike(one.weight, other.weight)
    assert alike(one.bias, other.bias)
    assert not alike(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not alike({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
