from __future__ import annotations

import pytest
import torch

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.linalg.device import moved, open_device
from tests.conftest import State
from tests.contracts.laws import METHODS

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_what_is_moved_is_like_the_other_and_in_memory_of_its_own() -> None:
    stored, like = torch.arange(6).bfloat16(), torch.zeros(2, 3)
    found = moved(stored, like)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    same = torch.zeros(3)
    assert moved(same, same).data_ptr() != same.data_ptr()
    out = torch.empty(2, 3)
    assert moved(stored, like, out) is out


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "", "CPU"])
def test_a_device_that_is_not_there_is_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(ParameterError, match="cpu"):
        open_device(name)


@gpu
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_gpu_gives_the_same_but_for_rounding(
    method: object, base: State, experts: list[State]
) -> None:
    count = method.experts[1] or 3

    def run(device: str) -> State:
        return magmerge.merge(
            base=base,
            experts=experts[:count],
            method=method.name,
            calibrate="wsc",
            device=device,
        ).state_dict()

    here, there = run("cpu"), run("cuda")
    for name, tensor in here.items():
        assert there[name].is_cpu
        assert torch.allclose(tensor, there[name], rtol=1e-4, atol=1e-5), name
