"""Coordinates keep what rows are to each other, and truncation is the best of its rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magmerge.checkpoints.adapters.factored import coordinates, norm_of, norms, spectrum, truncate
from magmerge.checkpoints.adapters.nouns import LowRank

SIZES = st.integers(1, 12)


def factors_of(seed: int, out: int, features: int, ranks: list[int]) -> list[LowRank]:
    draw = torch.Generator().manual_seed(seed)
    return [
        LowRank(
            torch.randn(out, rank, generator=draw),
            torch.randn(rank, features, generator=draw),
            0.5 + place,
        )
        for place, rank in enumerate(ranks)
    ]


def whole(factor: LowRank) -> Tensor:
    return factor.scale * (factor.up.double() @ factor.down.double().flatten(1))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**20), SIZES, SIZES, st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_coordinates_times_basis_are_the_task_vectors(
    seed: int, out: int, features: int, ranks: list[int]
) -> None:
    factors = factors_of(seed, out, features, [*ranks, 1])
    found = coordinates(factors)
    for delta, factor in zip(found.deltas, factors, strict=True):
        assert torch.allclose((delta @ found.basis).double(), whole(factor), atol=2e-5, rtol=1e-5)
    identity = found.basis @ found.basis.T
    assert torch.allclose(identity, torch.eye(len(identity)), atol=1e-5)
    assert found.deltas.shape[2] <= min(features, sum(ranks) + 1)


def test_a_convolution_is_taken_with_flat_kernels() -> None:
    down = torch.randn(3, 4, 2, 2)
    factor = LowRank(torch.randn(5, 3), down, 2.0)
    found = coordinates([factor])
    wanted = 2.0 * torch.einsum("or,rihw->oihw", factor.up, down).flatten(1)
    assert torch.allclose(found.deltas[0] @ found.basis, wanted, atol=1e-5)


def test_norms_are_those_of_the_full_matrices() -> None:
    factors = factors_of(1, 30, 20, [3, 4])
    expected = pytest.approx([float(whole(one).norm()) for one in factors], rel=1e-6)
    assert norms(coordinates(factors).deltas) == expected
    assert [norm_of(one) for one in factors] == expected


@pytest.mark.parametrize(("out", "features"), [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e12])
def test_truncation_is_the_best_of_its_rank_and_tells_what_it_lost(
    out: int, features: int, scale: float
) -> None:
    delta = torch.randn(out, features, generator=torch.Generator().manual_seed(2)) * scale
    exact = torch.linalg.svdvals(delta.double())
    values, vectors = spectrum(delta)
    assert torch.allclose(values, exact, rtol=1e-5)
    for rank in (1, 5, 12):
        up, down, error = truncate(delta, values, vectors, rank)
        assert up.shape == (out, rank)
        assert down.shape == (rank, features)
        left = float((delta.double() - up.double() @ down.double()).norm() / exact.norm())
        best = float(exact[rank:].norm() / exact.norm())
        assert error == pytest.approx(best, abs=1e-6)
        assert left == pytest.approx(best, abs=2e-6)


def test_both_factors_have_the_same_size() -> None:
    delta = torch.randn(9, 7)
    up, down, _ = truncate(delta, *spectrum(delta), 4)
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)


def test_a_rank_beyond_the_matrix_is_the_whole_matrix() -> None:
    delta = torch.randn(9, 2) @ torch.randn(2, 7)
    values, vectors = spectrum(delta)
    assert len(values) == 2
    up, down, error = truncate(delta, values, vectors, 100)
    assert up.shape[1] == 2
    assert error < 1e-6
    assert torch.allclose(up @ down, delta, atol=1e-5)


def test_zeros_have_factors_of_rank_one_that_are_zero() -> None:
    delta = torch.zeros(5, 3)
    up, down, error = truncate(delta, *spectrum(delta), 4)
    assert up.shape == (5, 1)
    assert down.shape == (1, 3)
    assert not up.any()
    assert error == 0.0
