from __future__ import annotations

import pytest
import torch

import magmerge
from tests.contracts.laws import rows_for

nearswap = magmerge.method("nearswap").fn


@pytest.mark.parametrize("t", [1e-4, 0.03, 0.5])
def test_equals_the_weighted_formula_on_whole_weights(t: float) -> None:
    base = rows_for(None, (5, 9), experts=1)[0].double()
    expert = base + 0.1 * rows_for(None, (9, 5), experts=1)[0].T.double()
    found = base + nearswap((expert - base).unsqueeze(0), t=t)
    for i in range(5):
        for j in range(9):
            a, b = float(base[i, j]), float(expert[i, j])
            w = min(1.0, max(0.0, t / max(abs(a - b), 1e-6)))
            assert float(found[i, j]) == pytest.approx(w * b + (1 - w) * a, abs=1e-12)


def test_near_entries_become_the_experts_and_none_moves_farther_than_t() -> None:
    delta = torch.tensor([[0.5, -0.5, 2.0, -2.0, 1.0, 0.0]])
    assert nearswap(delta, t=1.0).tolist() == [0.5, -0.5, 1.0, -1.0, 1.0, 0.0]


def test_t_zero_is_the_base() -> None:
    assert not nearswap(rows_for(None, (5, 9), experts=1), t=0.0).any()
