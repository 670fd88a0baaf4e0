from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magmerge
from tests.contracts.laws import rows_for

consensus_ta = magmerge.method("consensus_ta").fn


def slow_consensus(deltas: Tensor, share: float, threshold: int, lam: float) -> Tensor:
    """Entry by entry, in float64."""
    flat = deltas.double().reshape(len(deltas), -1)
    out = torch.zeros(flat.shape[1], dtype=torch.float64)
    for j in range(flat.shape[1]):
        column = [float(value) for value in flat[:, j]]
        total = sum(column)
        needing = sum(abs(value) >= share * abs(total - value) for value in column)
        if needing >= min(threshold, len(column)):
            out[j] = lam * total
    return out.reshape(deltas.shape[1:])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("threshold", [1, 2, 3, 9])
@pytest.mark.parametrize("experts", [1, 2, 3, 5])
def test_equals_the_definition(share: float, threshold: int, experts: int) -> None:
    deltas = rows_for(None, (9, 11), experts)
    found = consensus_ta(deltas, l=share, threshold=threshold, lambda_=0.7)
    assert torch.allclose(found.double(), slow_consensus(deltas, share, threshold, 0.7), atol=1e-6)


def test_an_entry_that_one_task_alone_changes_is_dropped() -> None:
    deltas = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert torch.allclose(consensus_ta(deltas), torch.tensor([0.0, 0.6]))


def test_blocks_of_entries_may_be_merged_alone() -> None:
    deltas = rows_for(None, (8, 6))
    blocks = [consensus_ta(part) for part in deltas.reshape(3, -1).split(7, dim=1)]
    assert torch.equal(torch.cat(blocks).reshape(8, 6), consensus_ta(deltas))
