from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.calibrators.regression import PULL

regression = magmerge.calibrator("regression").fn
SHAPES = [(5, 9), (12, 7), (6, 3, 2, 2)]


def random_layer(shape: tuple[int, ...], experts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    deltas = 1e-3 * torch.randn((experts, *shape), generator=generator)
    return deltas, deltas.mean(0) + 1e-4 * torch.randn(shape, generator=generator)


def plain_regression(deltas: Tensor, merged: Tensor, ridge: float | None) -> Tensor:
    """The formula, by least squares on stacked equations, in float64."""
    rows, start = deltas.double().flatten(2), merged.double().flatten(1)
    grams = [one.T @ one / torch.linalg.matrix_norm(one.T @ one) for one in rows]
    if ridge is None:
        shares = [min(1.0, float(own.trace()) ** 2 / min(start.shape)) for own in grams]
        ridge = PULL / (sum(shares) / len(shares)) ** 2
    roots = []
    for own in grams:
        values, vectors = torch.linalg.eigh(own)
        roots.append(vectors * values.clamp(min=0).sqrt())
    held = ridge**0.5 * torch.eye(start.shape[1], dtype=torch.float64)
    left = torch.cat([*(root.T for root in roots), held])
    right = torch.cat([*(root.T @ one.T for root, one in zip(roots, rows, strict=True)),
                       held @ start.T])  # fmt: skip
    return torch.linalg.lstsq(left, right).solution.T.reshape(merged.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("ridge", [None, 0.01, 1.0])
def test_equals_the_formula(shape: tuple[int, ...], experts: int, ridge: float | None) -> None:
    deltas, merged = random_layer(shape, experts)
    solved = regression(deltas, merged, ridge="spectrum" if ridge is None else ridge)
    expected = plain_regression(deltas, merged, ridge)
    torch.testing.assert_close(solved.double(), expected, rtol=1e-5, atol=1e-9)


def test_experts_on_inputs_of_their_own_are_all_kept() -> None:
    """Task vectors of orthogonal rows ask for nothing that contradicts."""
    deltas = torch.zeros(2, 6, 8)
    generator = torch.Generator().manual_seed(1)
    deltas[0, :, :4] = torch.randn(6, 4, generator=generator)
    deltas[1, :, 4:] = torch.randn(6, 4, generator=generator)
    solved = regression(deltas, deltas.mean(0), ridge=1e-6)
    torch.testing.assert_close(solved, deltas.sum(0), rtol=1e-3, atol=1e-3)


def test_a_low_rank_layer_stays_with_the_merge_and_a_full_one_leaves_it() -> None:
    generator = torch.Generator().manual_seed(2)
    full = torch.randn(3, 64, 64, generator=generator)
    low = torch.stack([torch.outer(*torch.randn(2, 64, generator=generator)) for _ in range(3)])
    moved = []
    for deltas in (full, low):
        start = deltas.sum(0)
        change = regression(deltas, start) - start
        equations = regression(deltas, start, ridge=1e-6) - start
        moved.append(float(change.norm() / equations.norm()))
    assert moved[0] > 0.9
    assert moved[1] < 0.5


def test_where_the_equations_say_nothing_the_merge_is_kept() -> None:
    deltas, merged = random_layer((5, 9), 3)
    deltas[:, :, 4:] = 0
    solved = regression(deltas, merged)
    torch.testing.assert_close(solved[:, 4:], merged[:, 4:], rtol=1e-6, atol=0)


def test_follows_any_merge_of_a_model() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"layers.0.weight": torch.randn(8, 6, generator=generator),
            "layers.0.bias": torch.randn(8, generator=generator)}  # fmt: skip
    experts = [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
         for name, tensor in base.items()}
        for _ in range(3)
    ]  # fmt: skip
    plain = magmerge.merge(base=base, experts=experts, method="tsv_m").state_dict()
    result = magmerge.merge(
        base=base, experts=experts, method="tsv_m", calibrate="regression"
    ).state_dict()
    name = "layers.0.weight"
    deltas = torch.stack([expert[name] - base[name] for expert in experts])
    expected = base[name] + plain_regression(deltas, plain[name] - base[name], None)
    torch.testing.assert_close(result[name].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(result["layers.0.bias"], plain["layers.0.bias"])
