"""Equations that cannot be solved are refused in words, wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.calibrators.featcal import both_products
from magmerge.calibrators.regmean import products
from magmerge.core.errors import NonFiniteError, ParameterError
from magmerge.linalg.cholesky import cholesky_solution

Fn = Callable[..., Tensor]


def test_it_is_the_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = cholesky_solution(rows.T @ rows, right, remedy="")
    torch.testing.assert_close(found, torch.linalg.solve(rows.T @ rows, right))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_told(value: float) -> None:
    good, bad = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    bad[2, 2] = value
    for left, right in ((good, bad), (bad, good)):
        with pytest.raises(NonFiniteError, match=r"1 .*16 values"):
            cholesky_solution(left, right, remedy="raise it")


@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus", "featcal", "regression_samples"])
def test_sums_that_are_not_finite_are_told(name: str) -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    x[3, 2] = math.nan
    one = both_products(x, x) if name == "featcal" else products(x)
    solve: Fn = magmerge.calibrator(name).fn
    with pytest.raises(NonFiniteError, match="NaN"):
        solve(torch.ones(2, 5, 6), torch.ones(5, 6), sums=torch.stack([one] * 2))


def test_a_ridge_below_rounding_is_told() -> None:
    generator = torch.Generator().manual_seed(3)
    deltas = torch.randn(1, 1, 40, generator=generator).expand(3, 30, 40).contiguous()
    calls: list[Fn] = [
        lambda: magmerge.method("wudi").fn(deltas, filter_="tikhonov", ridge=1e-17),
        lambda: magmerge.calibrator("regression").fn(deltas, deltas.mean(0), ridge=1e-17),
    ]
    for call in calls:
        with pytest.raises(ParameterError, match="rounding") as told:
            call()
        assert told.value.remedy == "raise ridge"


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_a_merge_names_the_layer_that_cannot_be_solved() -> None:
    rank_one = torch.outer(torch.arange(1.0, 7), torch.arange(2.0, 8))
    base = {"layers.0.weight": torch.zeros(6, 6)}
    experts = {f"e{k}": {"layers.0.weight": (k + 1) * rank_one} for k in range(2)}
    params = {"filter": "tikhonov", "ridge": 1e-30}
    with pytest.raises(ParameterError, match=r"raise ridge") as caught:
        magmerge.merge(base=base, experts=experts, method="wudi", params=params)
    assert caught.value.tensor == "layers.0.weight"
