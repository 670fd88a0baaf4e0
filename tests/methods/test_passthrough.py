from __future__ import annotations

import torch

import magmerge
from tests.contracts.laws import rows_for

passthrough = magmerge.method("passthrough").fn


def test_is_the_expert_to_the_last_bit() -> None:
    one = rows_for(None, (5, 9), experts=1)
    found = passthrough(one)
    assert torch.equal(found, one[0])
    assert found.data_ptr() != one.data_ptr()


def test_scale_is_a_factor() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.equal(passthrough(one, scale=0.5), one[0] / 2)


def test_takes_one_model_and_needs_no_base() -> None:
    method = magmerge.method("passthrough")
    assert method.experts == (1, 1)
    assert method.base_free
    assert method.acts_on == "weights"
