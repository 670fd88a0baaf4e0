from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.methods.sparsify import dropped
from tests.contracts.laws import rows_for
from tests.methods.test_ties import slow_ties


def drop_and_rescale(deltas: Tensor, p: float, seeds: list[int] | None) -> Tensor:
    return torch.stack(list(dropped(deltas, p, seeds))) / (1 - p)


def test_each_entry_is_dropped_or_divided_by_what_stays() -> None:
    deltas = rows_for(None, (40, 50))
    dropped = drop_and_rescale(deltas, 0.9, [1, 2, 3])
    kept = dropped != 0
    assert torch.allclose(dropped[kept], (deltas / 0.1)[kept], rtol=1e-5)
    assert abs(float(kept.float().mean()) - 0.1) < 0.01


def test_the_expectation_is_the_task_vector() -> None:
    deltas = torch.ones(1, 20, 20)
    draws = [drop_and_rescale(deltas, 0.9, [seed]) for seed in range(400)]
    mean = torch.stack(draws).mean(0)
    # The standard error of each entry is 3 / sqrt(400) = 0.15, of their mean 0.0075.
    assert abs(float(mean.mean()) - 1) < 0.03


def test_experts_have_draws_of_their_own() -> None:
    one = rows_for(None, (20, 20), experts=1)
    dropped = drop_and_rescale(one.expand(2, 20, 20), 0.5, None)
    assert not torch.equal(dropped[0], dropped[1])


def test_p_zero_is_the_plain_merge() -> None:
    deltas = rows_for(None, (6, 7))
    assert torch.allclose(magmerge.method("dare").fn(deltas, p=0.0), deltas.mean(0), atol=1e-6)


def test_dare_ties_is_ties_on_what_is_left() -> None:
    deltas = rows_for(None, (6, 7))
    found = magmerge.method("dare_ties").fn(deltas, p=0.5, seeds=[1, 2, 3])
    expected = slow_ties(drop_and_rescale(deltas, 0.5, [1, 2, 3]), 1.0)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_mergekits_rescaling_gives_each_task_vector_its_sum_of_magnitudes_back() -> None:
    deltas, seeds = rows_for(None, (30, 40)), [1, 2, 3]
    kept = torch.stack(list(dropped(deltas, 0.8, seeds))).double()
    ratios = deltas.double().abs().sum((1, 2)) / kept.abs().sum((1, 2))
    found = magmerge.method("dare").fn(
        deltas, p=0.8, rescale="l1", normalize=False, lambda_=0.5, seeds=seeds
    )
    expected = 0.5 * (ratios.reshape(3, 1, 1) * kept).sum(0)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_what_stays_can_be_left_as_it_is(method: str) -> None:
    deltas, fn = rows_for(None, (30, 40)), magmerge.method(method).fn
    assert torch.allclose(fn(deltas, rescale="none") * 10, fn(deltas), rtol=1e-5)


def test_the_seed_decides_and_not_the_threads(base: dict, experts: list) -> None:
    def run(seed: int, threads: int) -> dict:
        return magmerge.merge(
            base=base, experts=experts, method="dare", seed=seed, threads=threads
        ).state_dict()

    first, again, other = run(1, 1), run(1, 3), run(2, 1)
    assert all(torch.equal(first[n], again[n]) for n in base)
    assert any(not torch.equal(first[n], other[n]) for n in base)
