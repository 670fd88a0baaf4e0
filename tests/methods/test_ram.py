from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from tests.contracts.laws import rows_for

ram = magmerge.method("ram").fn
plus = magmerge.method("ramplus_tl").fn


def slow_ram(deltas: Tensor, epsilon: float, boosts: list[float]) -> Tensor:
    """Entry by entry, in float64."""
    out = []
    for column in deltas.double().reshape(len(deltas), -1).T.tolist():
        changed = [(k, v) for k, v in enumerate(column) if abs(v) > epsilon]
        if len(changed) == 1:
            ((k, value),) = changed
            out.append(boosts[k] * value)
        else:
            out.append(sum(v for _, v in changed) / max(1, len(changed)))
    return torch.tensor(out, dtype=torch.float64).reshape(deltas.shape[1:])


def slow_boosts(deltas: Tensor, epsilon: float, r: float, alpha: float) -> list[float]:
    shared, unique = [0] * len(deltas), [0] * len(deltas)
    for column in deltas.reshape(len(deltas), -1).T.tolist():
        changed = [k for k, v in enumerate(column) if abs(v) > epsilon]
        for k in changed:
            (unique if len(changed) == 1 else shared)[k] += 1
    ratios = [s / max(u, 1e-5) for s, u in zip(shared, unique, strict=True)]
    return [1 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.5, 9.0])
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_equals_a_count_of_each_entry(epsilon: float, experts: int) -> None:
    deltas = rows_for(None, (9, 11), experts=experts)
    found = ram(deltas, epsilon=epsilon).double()
    assert torch.allclose(found, slow_ram(deltas, epsilon, [1.0] * experts), atol=1e-6)
    for r, alpha in ((0.1, 0.2), (0.5, 3.0)):
        boosts = slow_boosts(deltas, epsilon, r, alpha)
        found = plus(deltas, epsilon=epsilon, r=r, alpha=alpha).double()
        assert torch.allclose(found, slow_ram(deltas, epsilon, boosts), atol=1e-6)


def test_what_one_expert_changes_is_its_own_to_the_last_bit() -> None:
    deltas = torch.tensor([[0.3, 0.0, 0.2, 1e-6], [0.0, -0.7, 0.4, 1e-5]])
    expected = torch.tensor([0.3, -0.7, 0.3, 0.0])
    assert torch.allclose(ram(deltas), expected, rtol=1e-6)
    assert torch.equal(ram(deltas)[:2], expected[:2])


def test_only_the_unique_part_is_amplified() -> None:
    deltas = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    # One of the first expert's entries is shared, two are its own: 1 + 0.1 min(0.2, 0.5).
    found = plus(deltas, r=0.1, alpha=10.0)
    assert torch.allclose(found, torch.tensor([1.05, 1.05, 1.0, 1.1]))


def test_sole_changes_are_not_amplified() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.equal(plus(one), ram(one))
