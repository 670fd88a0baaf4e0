from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.linalg.spectral import RANK_CUT
from magmerge.methods import wudi as family
from tests.linalg.matrices import distance, with_spectrum

wudi = magmerge.method("wudi").fn


def leading(deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets of [...D_k^T / |D_k|...], as many as its effective rank says."""
    matrices = [one for one in deltas.double().reshape(*deltas.shape[:2], -1) if one.norm() > 0]
    known = torch.cat([matrix.T / matrix.norm() for matrix in matrices], dim=1)
    left, values, right = torch.linalg.svd(known, full_matrices=False)
    there = values[values > RANK_CUT * values[0]]
    rank = round(float(there.sum() ** 2 / there.square().sum()))
    return left[:, :rank], values[:rank], right[:rank]


def slow_wudi(deltas: Tensor) -> Tensor:
    """The least squares problem as the paper states it, all rows at once, on leading directions."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    alive = [matrix for matrix in matrices if matrix.norm() > 0]
    if not alive:
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    # (D - D_k) D_k^T / |D_k| = 0 for all k: D [...D_k^T / |D_k|...] = [...D_k D_k^T / |D_k|...]
    wanted = torch.cat([matrix @ matrix.T / matrix.norm() for matrix in alive], dim=1)
    left, values, right = leading(deltas)
    return (wanted @ (right.T / values) @ left.T).reshape(deltas.shape[1:])


def loss(merged: Tensor, deltas: Tensor) -> Tensor:
    merged, deltas = merged.double(), deltas.double()
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


def stacked(experts: int, shape: tuple[int, int], spectrum: str) -> Tensor:
    return torch.stack([with_spectrum(shape, spectrum, seed) for seed in range(experts)])


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15), (3, 200)], ids=str)
@pytest.mark.parametrize("spectrum", ["normal", "thousand", "power", "low rank", "zero"])
@pytest.mark.parametrize("experts", [1, 3, 8])
def test_equals_the_definition(shape: tuple[int, int], spectrum: str, experts: int) -> None:
    deltas = stacked(experts, shape, spectrum)
    assert distance(wudi(deltas), slow_wudi(deltas)) < 1e-4


def test_descent_from_the_sum_tends_to_it_on_the_leading_directions() -> None:
    """The authors' start and objective, with plain gradient steps until nothing changes."""
    deltas = stacked(3, (6, 24), "normal").double() * 1e3
    found = deltas.sum(0)
    for _ in range(20000):
        slope = sum(((found - d) @ d.T) @ d / d.square().sum() for d in deltas)
        found = found - 0.5 * slope
    kept = leading(deltas)[0]
    assert distance(wudi(deltas), found @ kept @ kept.T) < 1e-4


def test_no_other_task_vector_on_these_directions_disturbs_less() -> None:
    deltas = stacked(4, (10, 16), "power")
    merged, kept = wudi(deltas), leading(deltas)[0].float()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = merged + 1e-5 * torch.randn(10, 16, generator=generator) @ kept @ kept.T
        assert loss(merged, deltas) < loss(other, deltas)
    assert loss(merged, deltas) < loss(deltas.sum(0) @ kept @ kept.T, deltas)


def test_experts_that_share_nothing_are_all_kept() -> None:
    """Equal singular values: the effective rank is the whole, and each expert is met exactly."""
    whole = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    deltas = torch.stack([whole[:4], whole[4:8], whole[8:]])
    assert torch.allclose(wudi(deltas), deltas.sum(0), atol=1e-5)


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-5])
def test_the_weakest_directions_are_not_blown_up(noise: float) -> None:
    """Adapters of low rank with a little noise: a pseudo-inverse would divide by the noise."""
    generator = torch.Generator().manual_seed(2)
    deltas = torch.stack(
        [
            torch.randn(48, 4, generator=generator) @ torch.randn(4, 96, generator=generator)
            + noise * torch.randn(48, 96, generator=generator)
            for _ in range(6)
        ]
    )
    assert wudi(deltas).norm() < 1.5 * deltas.sum(0).norm()


def test_an_expert_of_zeros_has_no_say() -> None:
    deltas = stacked(2, (9, 7), "normal")
    assert torch.allclose(wudi(torch.cat([deltas, torch.zeros(1, 9, 7)])), wudi(deltas))


def test_experts_of_very_different_size_underflow_nowhere() -> None:
    deltas = stacked(2, (9, 7), "normal") * torch.tensor([1e-25, 1e-3]).reshape(2, 1, 1)
    assert distance(wudi(deltas), slow_wudi(deltas)) < 1e-4


def test_a_convolution_is_a_matrix_and_a_vector_gets_the_mean() -> None:
    deltas = stacked(3, (8, 18), "normal")
    assert torch.equal(wudi(deltas.reshape(3, 8, 2, 3, 3)), wudi(deltas).reshape(8, 2, 3, 3))
    assert wudi(torch.tensor([[1.0, 2.0], [3.0, -6.0]])).tolist() == [2.0, -2.0]


def slow_filter(deltas: Tensor, share: Callable[[Tensor], Tensor]) -> Tensor:
    """D_0 + (R - D_0 G) U f(w) / w U^T of arXiv:2606.07289, `share` being f(w) / w."""
    matrices = deltas.double().reshape(len(deltas), deltas.shape[1], -1)
    alive = [matrix for matrix in matrices if matrix.norm() > 0]
    if not alive:
        return torch.zeros(deltas.shape[1:], dtype=torch.float64)
    grams = [matrix.T @ matrix / matrix.square().sum() for matrix in alive]
    whole, start = sum(grams), sum(alive)
    target = sum(matrix @ gram for matrix, gram in zip(alive, grams, strict=True))
    values, vectors = torch.linalg.eigh(whole)
    values = values.clamp(min=1e-13)
    found = start + (target - start @ whole) @ (vectors * share(values)) @ vectors.T
    return found.reshape(deltas.shape[1:])


def descended(time: float) -> Callable[[Tensor], Tensor]:
    return lambda w: -torch.expm1(-time * w) / w


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (3, 200), (40, 300)], ids=str)
@pytest.mark.parametrize("spectrum", ["normal", "thousand", "power", "low rank", "zero"])
def test_filters_equal_their_definitions(shape: tuple[int, int], spectrum: str) -> None:
    deltas = stacked(3, shape, spectrum)
    for time in (1.0, 300.0):
        found = wudi(deltas, filter_="exponential", time=time)
        assert distance(found, slow_filter(deltas, descended(time))) < 1e-4
    for ridge in (0.01, 1.0):
        found = wudi(deltas, filter_="tikhonov", ridge=ridge)
        assert distance(found, slow_filter(deltas, lambda w, ridge=ridge: 1 / (w + ridge))) < 1e-4


def test_the_exponential_filter_is_gradient_descent_from_the_sum() -> None:
    deltas = stacked(3, (6, 24), "normal").double()
    found, step = deltas.sum(0), 1e-3
    for _ in range(5000):
        found = found - step * sum(((found - d) @ d.T) @ d / d.square().sum() for d in deltas)
    assert distance(wudi(deltas, filter_="exponential", time=5.0), found) < 1e-3


@pytest.mark.parametrize("time", [300.0, 1e7])
def test_what_float32_would_lose_is_done_in_float64(time: float) -> None:
    """So long a descent is next to the pseudo-inverse, which multiplies rounding."""
    deltas = stacked(3, (40, 300), "thousand")
    found = wudi(deltas, filter_="exponential", time=time)
    assert distance(found, slow_filter(deltas, descended(time))) < 1e-4


@pytest.mark.parametrize("spectrum", ["normal", "thousand", "power", "low rank"])
def test_the_estimate_is_of_the_error_that_float32_makes(spectrum: str) -> None:
    """Within a factor of ten, and below it by three at most: what is accepted is good enough."""
    deltas, time = stacked(3, (200, 300), spectrum), 300.0
    gram, target, start, _ = family.equations(deltas)
    missing = target - start @ gram
    exact_values, exact = torch.linalg.eigh(gram)
    values, vectors = (part.double() for part in torch.linalg.eigh(gram.float()))
    shares, slopes = family.descended(values, time)
    found = missing.float() @ ((vectors * shares) @ vectors.T).float()
    correct = missing @ (exact * family.descended(exact_values, time)[0]) @ exact.T
    along = (missing @ vectors).norm(dim=0)
    error = float((found.double() - correct).norm())
    estimate = family.filter_error(values, shares, slopes, along)
    assert error / 3 < estimate < 10 * error


@pytest.mark.parametrize("filter_", ["rank", "exponential", "tikhonov"])
def test_no_filter_explodes_on_adapters(filter_: str) -> None:
    """Of rank 4, exactly and with a little noise: directions that nobody has stay at nothing."""
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(6, 48, 4, generator=generator)
    exact = left @ torch.randn(6, 4, 96, generator=generator)
    for noise in (0.0, 1e-6, 1e-3):
        deltas = exact + noise * torch.randn(6, 48, 96, generator=generator)
        assert wudi(deltas, filter_=filter_).norm() < 1.5 * deltas.sum(0).norm()


def test_each_filter_by_its_name() -> None:
    weight = {"a.weight": torch.randn(6, 8)}
    experts = [{"a.weight": weight["a.weight"] + torch.randn(6, 8)} for _ in range(2)]
    options = {"base": weight, "experts": experts}
    plain = magmerge.merge(**options, method="aswudi").state_dict()
    assert torch.equal(
        plain["a.weight"], magmerge.merge(**options, method="wudi").state_dict()["a.weight"]
    )
    soft = magmerge.merge(**options, method="wudi", params={"filter": "exponential", "time": 50})
    assert not torch.equal(plain["a.weight"], soft.state_dict()["a.weight"])
