"""What rank a merged module gets, and which wishes are refused."""

from __future__ import annotations

import pytest
import torch
from magmerge.checkpoints.adapters.ranks import asked_output, chosen_rank

from magmerge.core.errors import MagmergeError
from magmerge.core.recipe import AdapterOutput

VALUES = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)


def test_each_rule() -> None:
    assert chosen_rank(AdapterOutput(), VALUES, 3) == 3
    assert chosen_rank(AdapterOutput(rank=2), VALUES, 3) == 2
    assert chosen_rank(AdapterOutput(rank="exact"), VALUES, 3) == 4
    assert chosen_rank(AdapterOutput(rank="auto", energy=0.9), VALUES, 3) == 2


def test_nothing_asked_is_nothing() -> None:
    assert asked_output(None, None, None) is None
    assert asked_output("16", None, None) == AdapterOutput(rank=16)


@pytest.mark.parametrize(
    ("rank", "energy", "naming", "words"),
    [
        (0, None, None, "the rank is 0"),
        (-3, None, None, "the rank is -3"),
        ("many", None, None, "the rank is 'many'"),
        (True, None, None, "the rank is True"),
        (8, 0.5, None, "energy speaks of rank auto"),
        ("auto", 0.0, None, "the energy is 0.0"),
        ("auto", 1.5, None, "the energy is 1.5"),
        ("auto", float("nan"), None, "the energy is nan"),
        (None, None, "koyha", "there is no naming 'koyha'"),
    ],
)
def test_wishes_without_a_meaning(rank: object, energy: object, naming: object, words: str) -> None:
    with pytest.raises(MagmergeError, match=words):
        asked_output(rank, energy, naming)
