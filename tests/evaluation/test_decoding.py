"""Inputs are made ahead of the model, but not far, and kept while there is room."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from magmerge.evaluation.batches import Prepared
from magmerge.evaluation.decoding import AHEAD, Ahead, Kept, size_of
from magmerge.samples import Inputs


@dataclass
class Slow:
    """A batch of one row of 100 bytes; it notes that it was made."""

    number: int
    made: list[int]

    @property
    def rows(self) -> tuple[int, ...]:
        return (self.number,)

    def inputs(self) -> Inputs:
        time.sleep(0.001 * (self.number % 3))
        self.made.append(self.number)
        return Inputs((torch.full((25,), float(self.number)),), {}, 1)

    def measure(self, module: nn.Module, inputs: Inputs) -> Tensor:
        return inputs.args[0][:1]


def task(count: int, made: list[int], *, lazy: bool = True) -> Prepared:
    batches = tuple(Slow(number, made) for number in range(count))
    return Prepared(batches, count, torch.zeros(count), "here", lazy)


def taken(found: Ahead, count: int) -> list[float]:
    return [float(found.take(number).result().args[0][0]) for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("lazy", [True, False])
def test_inputs_come_in_order(workers: int, lazy: bool) -> None:
    with Ahead(task(20, [], lazy=lazy), Kept(), workers) as ahead:
        assert taken(ahead, 20) == list(range(20))


def test_no_more_is_decoded_than_stated() -> None:
    made: list[int] = []
    with Ahead(task(50, made), Kept(), 2) as ahead:
        for number in range(10):
            ahead.take(number).result()
            time.sleep(0.02)
            assert len(made) == number + 1 + AHEAD * 2
    assert len(made) < 50


def test_what_fits_is_kept_and_what_came_first_stays() -> None:
    made: list[int] = []
    one, kept = task(5, made), Kept()
    kept.begin([one], 300)
    for _ in range(2):
        with Ahead(one, kept, 1) as ahead:
            assert taken(ahead, 5) == list(range(5))
    assert kept.size == 300
    assert made == [0, 1, 2, 3, 4, 3, 4]


def test_only_tasks_that_are_not_at_work_make_room() -> None:
    one, two, kept = task(3, []), task(3, []), Kept()
    kept.begin([one, two], 400)
    for each in (one, two):
        with Ahead(each, kept, 1) as ahead:
            taken(ahead, 3)
    assert [kept.get(one, n) is not None for n in range(3)] == [True] * 3
    assert [kept.get(two, n) is not None for n in range(3)] == [True, False, False]
    kept.begin([two], 400)
    with Ahead(two, kept, 1) as ahead:
        taken(ahead, 3)
    assert [kept.get(two, n) is not None for n in range(3)] == [True] * 3
    assert kept.size == 400
    kept.begin([two], 150)
    assert kept.size == 100
    kept.begin([], 0)
    assert kept.size == 0


def test_ready_inputs_are_not_kept_twice() -> None:
    one, kept = task(3, [], lazy=False), Kept()
    kept.begin([one], 1000)
    with Ahead(one, kept, 1) as ahead:
        taken(ahead, 3)
    assert kept.size == 0


def test_leaving_early_stops_the_workers() -> None:
    before = threading.active_count()
    made: list[int] = []
    with Ahead(task(50, made), Kept(), 3) as ahead:
        ahead.take(0).result()
    assert threading.active_count() == before
    assert len(made) <= 1 + AHEAD * 3


def test_size_counts_all_tensors() -> None:
    assert (
        size_of(Inputs((torch.zeros(3), None), {"a": torch.zeros(2, dtype=torch.int64)}, 1)) == 28
    )
