from __future__ import annotations

import pytest
import torch

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.experts import align
from magmerge.core.errors import StructureError
from tests.conftest import State


def wrapped(state: State) -> State:
    return {f"bert.{name}": tensor for name, tensor in state.items()}


def test_classifiers_merge_onto_the_bare_encoder(base: State, experts: list[State]) -> None:
    plain = magmerge.merge(base=base, experts=experts).state_dict()
    classifiers = [{**wrapped(state), "classifier.weight": torch.ones(2, 3)} for state in experts]
    found = magmerge.merge(base=base, experts=classifiers, ignore="classifier.*").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    with pytest.raises(StructureError) as caught:
        magmerge.plan(base=base, experts=classifiers)
    assert len(caught.value.faults) == 3


def test_bare_encoders_merge_onto_the_wrapped_model(base: State, experts: list[State]) -> None:
    plain = magmerge.merge(base=base, experts=experts).state_dict()
    found = magmerge.merge(base=wrapped(base), experts=experts).state_dict()
    assert all(torch.equal(found[f"bert.{name}"], tensor) for name, tensor in plain.items())


def test_models_that_fit_are_left_as_they_are(base: State) -> None:
    checkpoint = open_checkpoint(base)
    assert align(checkpoint, open_checkpoint(dict(base))) is checkpoint


def test_ties_and_kinds_follow_the_names() -> None:
    shared = torch.ones(3, 2)
    model = open_checkpoint({"m.a": shared, "m.b": shared})
    found = align(model, open_checkpoint({"a": shared, "b": shared}))
    assert found.ties == {"b": "a"}
    assert torch.equal(found.read("a"), shared)
