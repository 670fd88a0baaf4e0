from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.calibrators.regression import PULL
from magmerge.core.errors import ParameterError
from tests.front_door.test_one_path import misfit, nets

SAMPLED = magmerge.calibrator("regression_samples")
solve, products = SAMPLED.fn, SAMPLED.gather
assert products is not None


def random_layer(experts: int, tokens: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(experts)
    deltas = 1e-3 * torch.randn(experts, 6, 9, generator=generator)
    inputs = [torch.randn(tokens, 9, generator=generator) for _ in range(experts)]
    return deltas, 0.7 * deltas.sum(0), inputs


def plain(deltas: Tensor, merged: Tensor, inputs: list[Tensor], prior: float) -> Tensor:
    """The formula in float64, by an inverse."""
    columns = merged.shape[1]
    grams = [one.T @ one / torch.linalg.matrix_norm(one.T @ one) for one in deltas.double()]
    shares = [min(1.0, float(own.trace()) ** 2 / min(merged.shape)) for own in grams]
    ridge = PULL / (sum(shares) / len(shares)) ** 2
    held = prior * (sum(grams) + ridge * torch.eye(columns, dtype=torch.float64))
    left, right = held, merged.double() @ held
    for delta, rows in zip(deltas.double(), inputs, strict=True):
        seen = rows.double().T @ rows.double()
        if not len(rows):
            continue
        seen = seen / torch.linalg.matrix_norm(seen)
        weight = len(rows) / (len(rows) + float(seen.trace()) ** 2)
        left, right = left + weight * seen, right + weight * delta @ seen
    return right @ torch.linalg.inv(left)


@pytest.mark.parametrize("tokens", [0, 1, 4, 200])
@pytest.mark.parametrize("experts", [1, 3])
def test_equals_the_formula(experts: int, tokens: int) -> None:
    deltas, merged, inputs = random_layer(experts, tokens)
    sums = torch.stack([products(rows).double() for rows in inputs])
    solved = solve(deltas, merged, sums=sums, prior=0.3)
    torch.testing.assert_close(solved.double(), plain(deltas, merged, inputs, 0.3),
                               rtol=2e-4, atol=2e-8)  # fmt: skip


def test_without_rows_the_merge_stays() -> None:
    deltas, merged, _ = random_layer(3, 1)
    torch.testing.assert_close(solve(deltas, merged, sums=torch.zeros(3, 10, 10)), merged)


def test_without_sums_it_says_so() -> None:
    deltas, merged, _ = random_layer(2, 1)
    with pytest.raises(ParameterError, match="sums"):
        solve(deltas, merged)


def test_on_top_of_regression_it_comes_nearer_to_the_experts() -> None:
    base, experts, samples = nets(2)
    data = {f"expert-{k + 1}": one for k, one in enumerate(samples)}
    errors = []
    for calibrate in ("regression", ["regression", "regression_samples"]):
        more = {"data": data} if "regression_samples" in calibrate else {}
        result = magmerge.merge(
            base=base, experts=experts, method="tsv_m", calibrate=calibrate, **more
        )
        with torch.no_grad():
            errors.append(misfit(result.state_dict(), experts, samples))
    assert errors[1] < errors[0]
