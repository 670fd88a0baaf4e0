from __future__ import annotations

from pathlib import Path

import pytest

import magmerge
from magmerge.core.errors import StructureError
from tests.conftest import State


def test_an_expert_equal_to_the_base_is_refused(base: State, experts: list[State]) -> None:
    copy = {name: tensor.clone() for name, tensor in base.items()}
    with pytest.raises(StructureError, match="equal to the base"):
        magmerge.merge(base=base, experts=[experts[0], copy])


def test_the_same_expert_twice_is_refused(base: State, experts: list[State]) -> None:
    with pytest.raises(StructureError, match="the same expert"):
        magmerge.merge(base=base, experts=[experts[0], experts[1], dict(experts[0])])


def test_the_same_path_twice_is_refused(folders: list[Path]) -> None:
    for path in folders[:2]:
        with pytest.raises(StructureError, match="given twice"):
            magmerge.plan(base=folders[0], experts=[folders[1], path])


def test_experts_that_differ_in_one_value_are_two(base: State, experts: list[State]) -> None:
    near = {name: tensor.clone() for name, tensor in experts[0].items()}
    near["lm_head.weight"][-1, -1] += 1
    assert magmerge.merge(base=base, experts=[experts[0], near]).records
