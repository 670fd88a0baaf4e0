"""Every method and calibrator gives the same bits in one thread and in several."""

from __future__ import annotations

import pytest
import torch

import magmerge
from magmerge.types import Method
from tests.conftest import State
from tests.contracts.laws import CALIBRATORS, METHODS


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("calibrator", [None, *(c.name for c in CALIBRATORS)])
def test_serial_equals_threaded(
    method: Method, calibrator: str | None, base: State, experts: list[State]
) -> None:
    count = method.experts[1] or 3

    def run(threads: int) -> State:
        return magmerge.merge(
            base=base,
            experts=experts[:count],
            method=method.name,
            calibrate=calibrator,
            threads=threads,
            seed=7,
        ).state_dict()

    serial, threaded = run(1), run(4)
    assert list(serial) == list(base)
    for name, tensor in serial.items():
        assert torch.equal(tensor, threaded[name]), name
