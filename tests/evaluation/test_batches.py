"""Inputs are made ahead of the model, in order, and not far."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from magmerge.data.rows import Inputs
from magmerge.evaluation.runner import AHEAD, Batch, batches_ahead


def batches(count: int, made: list[int]) -> list[Batch]:
    def batch(number: int) -> Batch:
        def inputs() -> Inputs:
            time.sleep(0.001 * (number % 3))
            made.append(number)
            return Inputs((torch.full((25,), float(number)),), {}, 1)

        return Batch((number,), inputs, lambda _, inputs: inputs.args[0][:1])

    return [batch(number) for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_inputs_come_in_order(workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        ahead = batches_ahead(batches(20, []), pool, workers)
        assert [(b.rows[0], float(f.result().args[0][0])) for b, f in ahead] == [
            (number, number) for number in range(20)
        ]


def test_no_more_is_decoded_than_stated() -> None:
    made: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        ahead = batches_ahead(batches(50, made), pool, 2)
        for number in range(10):
            next(ahead)[1].result()
            time.sleep(0.02)
            assert len(made) <= number + 1 + AHEAD * 2
