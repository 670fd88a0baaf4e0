from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import magmerge
from magmerge.calibrators.gate import gate

wsc = magmerge.calibrator("wsc").fn


def slow_wsc(deltas: Tensor, merged: Tensor) -> Tensor:
    """The formula, row by row, in float64."""
    a = deltas.double().reshape(len(deltas), merged.shape[0], -1)
    d = merged.double().reshape(merged.shape[0], -1)
    out = torch.ones(merged.shape[0], dtype=torch.float64)
    for row in range(merged.shape[0]):
        norms = [float(a[k, row].norm()) for k in range(len(a))]
        if float(d[row].norm()) == 0 or not any(norms):
            continue
        c = [float(d[row] @ a[k, row]) / norms[k] ** 2 if norms[k] else 0.0 for k in range(len(a))]
        r = d[row] - sum(c[k] * a[k, row] for k in range(len(a)))
        radius = sum(norms) / len(norms)
        out[row] = 1 / math.sqrt(sum(x * x for x in c) + float(r @ r) / radius**2)
    return out


def orthogonal(count: int, width: int, rows: int = 4) -> Tensor:
    """[K, rows, width]: in each row, `count` orthogonal vectors of length 1."""
    generator = torch.Generator().manual_seed(0)
    bases = [
        torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(rows)
    ]
    return torch.stack([basis[:count] for basis in bases], dim=1)


@pytest.mark.parametrize("shape", [(5, 9), (4, 3, 2, 2), (3, 40)])
@pytest.mark.parametrize("experts", [1, 2, 7])
def test_equals_the_formula(shape: tuple[int, ...], experts: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    deltas = torch.randn((experts, *shape), generator=generator)
    merged = 0.3 * deltas.sum(0) + 0.1 * torch.randn(shape, generator=generator)
    assert torch.allclose(wsc(deltas, merged).double(), slow_wsc(deltas, merged), rtol=1e-5)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_mean_of_k_orthogonal_rows_grows_by_the_root_of_k(count: int) -> None:
    deltas = orthogonal(count, 16)
    found = wsc(deltas, deltas.mean(0))
    assert torch.allclose(found, torch.full_like(found, math.sqrt(count)), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-5, 1e-12, 1e-30])
def test_tiny_rows_are_not_distorted(size: float) -> None:
    deltas = orthogonal(4, 16) * size
    found = wsc(deltas, deltas.mean(0))
    assert torch.allclose(found, torch.full_like(found, 2.0), rtol=1e-4)


def test_rows_of_zeros_keep_one() -> None:
    deltas = orthogonal(3, 8)
    merged = deltas.mean(0)
    merged[1] = 0
    deltas[:, 2] = 0
    found = wsc(deltas, merged)
    assert found[1] == 1
    assert found[2] == 1
    assert found[0] > 1.5


def test_an_expert_that_left_a_row_alone_counts_with_length_zero() -> None:
    deltas = orthogonal(2, 8)
    deltas[1] = 0
    assert torch.allclose(wsc(deltas, deltas[0]).double(), slow_wsc(deltas, deltas[0]), rtol=1e-5)


def test_sphere_gives_the_mean_length() -> None:
    deltas = torch.randn(3, 5, 9)
    merged = deltas.sum(0)
    found = wsc(deltas, merged, target="sphere").unsqueeze(-1) * merged
    assert torch.allclose(found.norm(dim=-1), deltas.norm(dim=-1).mean(0), rtol=1e-5)


@pytest.mark.parametrize("target", ["ellipsoid", "sphere"])
def test_layer_granularity_takes_the_layer_as_one_row(target: str) -> None:
    deltas = torch.randn(3, 5, 9)
    merged = deltas.mean(0)
    flat = wsc(deltas.reshape(3, 1, 45), merged.reshape(1, 45), target=target)
    whole = wsc(deltas, merged, target=target, granularity="layer")
    assert whole.shape == ()
    assert torch.allclose(whole, flat[0], rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-80, 60), experts=st.integers(1, 5))
def test_the_calibrated_row_does_not_depend_on_the_merges_scale(
    seed: int, exponent: int, experts: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(experts, 3, 7, generator=generator)
    merged = deltas.mean(0)
    scale = 2.0**exponent
    assert torch.allclose(wsc(deltas, merged * scale) * scale, wsc(deltas, merged), rtol=1e-4)


def test_the_gate_lets_sensitive_layers_shrink_and_others_grow() -> None:
    factor = torch.tensor([0.5, 1.0, 1.5])
    assert gate(factor, sensitive=True).tolist() == [0.5, 1.0, 1.0]
    assert gate(factor, sensitive=False).tolist() == [1.0, 1.0, 1.5]
