from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.errors import ParameterError
from tests.contracts.laws import rows_for

nuslerp = magmerge.method("nuslerp").fn


def slow_arc(a: list[float], b: list[float], t: float) -> list[float]:
    """The interpolation of two vectors by the formula."""
    size = math.hypot(*a) * math.hypot(*b)
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / size
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - t, t))
    return [first * x + second * y for x, y in zip(a, b, strict=True)]


def slow_nuslerp(deltas: Tensor, t: float, axis: int | None) -> Tensor:
    wide = deltas.double()
    if axis is None:
        arc = slow_arc(wide[0].reshape(-1).tolist(), wide[1].reshape(-1).tolist(), t)
        return torch.tensor(arc, dtype=torch.float64).reshape(deltas.shape[1:])
    moved = wide.movedim(axis, -1)
    rows = moved.reshape(2, -1, moved.shape[-1])
    arcs = [slow_arc(a.tolist(), b.tolist(), t) for a, b in zip(*rows, strict=True)]
    return torch.tensor(arcs, dtype=torch.float64).reshape(moved.shape[1:]).movedim(-1, axis - 1)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 6)], ids=str)
@pytest.mark.parametrize("weights", [[0.3, 0.7], [2.0, 1.0], [1.5, -0.5]])
def test_equals_the_formula(shape: tuple[int, ...], weights: list[float]) -> None:
    deltas = rows_for(None, shape, experts=2)
    t = weights[1] / sum(weights)
    whole = nuslerp(deltas, weights=weights).double()
    assert torch.allclose(whole, slow_nuslerp(deltas, t, None), atol=1e-5)
    for row_wise, axis in ((False, len(shape)), (True, 1)):
        found = nuslerp(deltas, weights=weights, flatten=False, row_wise=row_wise).double()
        assert torch.allclose(found, slow_nuslerp(deltas, t, axis), atol=1e-5)


@pytest.mark.parametrize("flatten", [True, False])
def test_on_one_line_it_is_linear(flatten: bool) -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = nuslerp(torch.cat([one, 3 * one]), weights=[1.0, 3.0], flatten=flatten)
    assert torch.allclose(found, 2.5 * one[0], rtol=1e-5)
    found = nuslerp(torch.cat([one, -one]), weights=[1.0, 3.0], flatten=flatten)
    assert torch.allclose(found, -0.5 * one[0], rtol=1e-5)


@pytest.mark.parametrize("flatten", [True, False])
def test_an_expert_that_changes_nothing_counts_by_its_weight(flatten: bool) -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = nuslerp(torch.cat([one, 0 * one]), weights=[1.0, 3.0], flatten=flatten)
    assert torch.allclose(found, 0.25 * one[0], rtol=1e-6)


def test_tiny_rows_keep_their_angle() -> None:
    deltas = rows_for(None, (5, 9), experts=2)
    once, tiny = (nuslerp(deltas * s, flatten=False) for s in (1.0, 2.0**-90))
    assert torch.allclose(once, tiny * 2.0**90, rtol=1e-5)


def test_weights_without_a_ratio_are_refused() -> None:
    with pytest.raises(ParameterError, match="add up to zero"):
        nuslerp(rows_for(None, (2, 2), experts=2), weights=[1.0, -1.0])
