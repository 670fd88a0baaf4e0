from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.methods.sce import variances
from tests.contracts.laws import rows_for
from tests.methods.pieces_law import by_pieces, large_layer

sce = magmerge.method("sce").fn


def slow_sce(deltas: Tensor, topk: float, floor: float = 0.0) -> Tensor:
    """Entry by entry, in float64."""
    count = len(deltas)
    columns = deltas.double().reshape(count, -1).T.tolist()
    spread = [sum((v - sum(c) / count) ** 2 for v in c) / count for c in columns]
    varying = sum(len(set(c)) > 1 for c in columns)
    if topk < 1 and varying:
        keep = max(1, math.floor(Fraction(str(topk)) * varying))
        order = sorted(range(len(columns)), key=lambda j: (-spread[j], j))
        kept = set(order[:keep])
        columns = [c if j in kept else [0.0] * count for j, c in enumerate(columns)]
    energies = [sum(c[k] ** 2 for c in columns) / len(columns) for k in range(count)]
    total = sum(energies)
    even = total == 0 or total < floor
    shares = [1 / count if even else energy / total for energy in energies]
    out = []
    for column in columns:
        mass = sum(column)
        agreeing = [(w, v) for w, v in zip(shares, column, strict=True) if v * mass > 0]
        weight = sum(w for w, _ in agreeing)
        out.append(sum(w * v for w, v in agreeing) / weight if agreeing else 0.0)
    return torch.tensor(out, dtype=torch.float64).reshape(deltas.shape[1:])


@pytest.mark.parametrize("topk", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("experts", [2, 3, 4])
def test_equals_the_three_steps(topk: float, experts: int) -> None:
    deltas = rows_for(None, (9, 11), experts=experts)
    deltas *= torch.arange(1, experts + 1).reshape(-1, 1, 1)
    deltas[:, 2] = deltas[0, 2]
    expected = slow_sce(deltas, topk)
    assert torch.allclose(sce(deltas, select_topk=topk).double(), expected, atol=1e-6)


def test_below_the_floor_experts_weigh_the_same() -> None:
    deltas = rows_for(None, (9, 11)) * 1e-4
    deltas[0] *= 5
    found = sce(deltas, select_topk=0.5, energy_floor=1e-6)
    expected = slow_sce(deltas, 0.5, 1e-6)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-10)
    assert not torch.allclose(found.double(), slow_sce(deltas, 0.5), rtol=1e-3)


def test_equal_variances_are_taken_in_order() -> None:
    deltas = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 1.0]])
    # Three entries vary alike; floor(0.7 * 3) = 2 of them stay.
    assert (sce(deltas, select_topk=0.7) != 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_what_all_agree_on_is_kept_where_nothing_varies(experts: int) -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.allclose(sce(one.expand(experts, 5, 9)), one[0], rtol=1e-6)


def test_copies_have_no_variance_at_all() -> None:
    one = rows_for(None, (50, 9), experts=1)
    for experts in (2, 3, 5, 7):
        assert not variances(one.expand(experts, 50, 9)).any()


def test_few_distinct_values_of_a_large_layer() -> None:
    """Brackets fail here, so that all variances are counted."""
    layer = (large_layer(2) * 30).round()
    whole = sce(layer, select_topk=0.3)
    assert torch.equal(by_pieces("sce", layer, select_topk=0.3), whole)
    varying = int((layer[0] != layer[1]).sum())
    expected = math.floor(Fraction("0.3") * varying)
    flat = variances(layer).reshape(-1)
    order = sorted(range(flat.numel()), key=flat.neg().tolist().__getitem__)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[order[:expected]] = True
    assert not whole.reshape(-1)[~kept].any()
