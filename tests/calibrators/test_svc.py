from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.linalg.spectral import RANK_CUT

svc = magmerge.calibrator("svc").fn


def slow_svc(deltas: Tensor, merged: Tensor, floor: float = 0.1) -> Tensor:
    """The formula, direction by direction, with a decomposition in float64."""
    matrix = merged.double().reshape(len(merged), -1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    out = torch.zeros_like(matrix)
    for r in range(int((values > RANK_CUT * values[0]).sum())):
        total = 0.0
        for delta in deltas.double():
            along = left[:, r] @ delta.reshape(len(delta), -1)
            share = float(left[:, r] @ matrix @ along) / float(along @ along) if along.any() else 0
            total += max(floor, share)
        out += len(deltas) / total * values[r] * torch.outer(left[:, r], right[r])
    return out.reshape(merged.shape)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 3, 2, 2), (40, 3)], ids=str)
@pytest.mark.parametrize("experts", [1, 2, 7])
def test_equals_the_formula(shape: tuple[int, ...], experts: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    deltas = torch.randn((experts, *shape), generator=generator) * 1e-3
    for merged in (deltas.mean(0), 0.3 * deltas.sum(0), deltas[0]):
        found = svc(deltas, merged)
        assert torch.allclose(found.double(), slow_svc(deltas, merged), rtol=1e-4, atol=1e-8)


def test_what_all_experts_share_is_counted_once() -> None:
    one = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    deltas = torch.stack([one, one, one])
    assert torch.allclose(svc(deltas, deltas.sum(0)), one, atol=1e-5)
    assert torch.allclose(svc(deltas, deltas.mean(0)), one, atol=1e-5)


def test_experts_that_share_nothing_are_met_halfway_by_the_floor() -> None:
    """One of two along each direction: 2 / (1 + 0.1) of their sum."""
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 0, 0], deltas[1, 1, 1] = 3.0, 2.0
    assert torch.allclose(svc(deltas, deltas.sum(0)), deltas.sum(0) * 2 / 1.1, atol=1e-6)


def test_rounding_along_a_direction_is_no_share() -> None:
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 0, 0], deltas[1, 1, 1], deltas[1, 0, 0] = 1.0, 1.0, 1e-9
    merged = deltas.sum(0)
    assert torch.allclose(svc(deltas, merged), merged * 2 / 1.1, atol=1e-6)


def test_follows_a_merge_from_the_front_door() -> None:
    generator = torch.Generator().manual_seed(1)
    base = {"a.weight": torch.zeros(6, 8)}
    experts = [{"a.weight": torch.randn(6, 8, generator=generator)} for _ in range(3)]
    found = magmerge.merge(base=base, experts=experts, method="average", calibrate="svc")
    deltas = torch.stack([expert["a.weight"] for expert in experts])
    assert torch.allclose(found.state_dict()["a.weight"], svc(deltas, deltas.mean(0)), atol=1e-6)
