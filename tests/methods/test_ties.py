from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import magmerge
from magmerge.methods.threshold import ModelThreshold
from magmerge.methods.ties import cut, trim
from tests.contracts.laws import rows_for


def slow_ties(
    deltas: Tensor, density: float, lam: float = 1.0, weights: list[float] | None = None
) -> Tensor:
    """Algorithm 1 of the paper, entry by entry, in float64."""
    k, shape = len(deltas), deltas.shape[1:]
    flat = deltas.double().reshape(k, -1)
    weights = weights or [1.0] * k
    keep = math.ceil(density * flat.shape[1])
    trimmed = torch.zeros_like(flat)
    for i in range(k):
        order = sorted(range(flat.shape[1]), key=lambda j: (-abs(float(flat[i, j])), j))
        for j in order[:keep]:
            trimmed[i, j] = flat[i, j]
    out = torch.zeros(flat.shape[1], dtype=torch.float64)
    for j in range(flat.shape[1]):
        column = [float(trimmed[i, j]) for i in range(k)]
        mass = sum(w * v for w, v in zip(weights, column, strict=True))
        sign = (mass > 0) - (mass < 0)
        agreeing = [i for i in range(k) if sign and column[i] * sign > 0]
        share = sum(weights[i] for i in agreeing)
        if share:
            out[j] = lam * sum(weights[i] * column[i] for i in agreeing) / share
    return out.reshape(shape)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_equals_the_paper(density: float, weights: list[float] | None) -> None:
    deltas = rows_for(None, (9, 11))
    found = magmerge.method("ties").fn(deltas, density=density, lambda_=0.7, weights=weights)
    expected = slow_ties(deltas, density, 0.7, weights)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_equal_magnitudes_are_taken_in_order() -> None:
    deltas = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.5]])
    assert trim(deltas, 0.4).tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0]]


def test_opposite_entries_of_equal_size_cancel_to_zero() -> None:
    deltas = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert magmerge.method("ties").fn(deltas, density=1.0).tolist() == [0.0, 2.0]


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 1.25, -3.0, 1e-30]), min_size=6),
    density=st.floats(0.01, 1.0),
)
def test_the_model_threshold_equals_a_sort_of_the_whole_model(
    values: list[float], density: float
) -> None:
    split = len(values) // 3
    layers = {
        "b": torch.tensor([values[:split]]),
        "a": torch.tensor([values[split:]]),
    }
    survey = ModelThreshold(1, density)
    for sweep in range(survey.passes):
        for name in ("b", "a"):
            survey.observe(sweep, name, layers[name])
        survey.conclude(sweep)
    kept = {n: cut(d, survey.for_layer(n)["thresholds"])[0] for n, d in layers.items()}
    flat = [(n, i) for n in sorted(layers) for i in range(layers[n].numel())]
    order = sorted(flat, key=lambda at: -abs(float(layers[at[0]][0, at[1]])))
    wanted = set(order[: math.ceil(density * len(values))])
    for name, layer in layers.items():
        expected = [float(v) if (name, i) in wanted else 0.0 for i, v in enumerate(layer[0])]
        assert kept[name].tolist() == expected


def test_model_scope_keeps_the_density_in_the_model_not_in_each_tensor() -> None:
    base = {"small.weight": torch.zeros(10, 10), "large.weight": torch.zeros(10, 10)}
    generator = torch.Generator().manual_seed(0)
    expert = {
        "small.weight": 0.001 * torch.randn(10, 10, generator=generator),
        "large.weight": torch.randn(10, 10, generator=generator),
    }
    other = {name: tensor.flip(0) for name, tensor in expert.items()}

    def kept(scope: str) -> dict[str, int]:
        result = magmerge.merge(
            base=base, experts=[expert, other], method="ties", params={"scope": scope}
        )
        return {n: int((t != 0).sum()) for n, t in result.state_dict().items()}

    assert kept("tensor")["small.weight"] >= 20
    assert kept("model")["small.weight"] == 0
    assert kept("model")["large.weight"] >= 40
