from __future__ import annotations

from importlib import metadata

import pytest
import torch

import magmerge
from magmerge.errors import MagmergeError, UnknownNameError
from magmerge.registry import Registry, parameters_of
from magmerge.types import Method


def registry() -> Registry[Method]:
    return Registry("method", "magmerge.methods", "magmerge.nothing")


def method(name: str) -> Method:
    return Method(name, lambda deltas: deltas, "", "", ())


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ties"):
        magmerge.method("tise")
    with pytest.raises(UnknownNameError, match="task_arithmetic"):
        magmerge.method("zzz")


def test_a_taken_name_is_refused() -> None:
    names = registry()
    names.add(method("a"), aliases=("b",))
    for taken in ("a", "b"):
        with pytest.raises(MagmergeError, match="registered already"):
            names.add(method(taken))


def test_a_method_of_ones_own_merges_like_any_other() -> None:
    @magmerge.register_method("largest_for_test", source="a test")
    def largest(deltas: torch.Tensor, *, power: float = 1.0) -> torch.Tensor:
        """The largest entry."""
        return deltas.amax(0) * power

    try:
        base = {"w": torch.zeros(2, 2)}
        experts = [{"w": torch.ones(2, 2)}, {"w": torch.eye(2) * 3}]
        result = magmerge.merge(
            base=base, experts=experts, method="largest_for_test", params={"power": 2.0}
        )
        assert result.state_dict()["w"].tolist() == [[6, 2], [2, 6]]
    finally:
        from magmerge import registry

        del registry.methods._items["largest_for_test"]


def test_a_function_without_defaults_cannot_be_registered() -> None:
    def fn(deltas: torch.Tensor, *, power: float) -> torch.Tensor:
        return deltas

    with pytest.raises(MagmergeError, match="has no default"):
        parameters_of(fn)


class Entry:
    name, value = "third", "party:method"

    def load(self) -> None:
        raise ImportError("no party")


def test_a_broken_entry_point_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    with pytest.raises(MagmergeError, match=r"third = party:method.*no party"):
        registry().get("ties")


def test_entry_points_are_loaded_at_the_first_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry()
    monkeypatch.setattr(Entry, "load", lambda _: names.add(method("third")))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    assert names.get("third").name == "third"


def test_the_catalog_lists_all_with_defaults_and_source() -> None:
    entries = {entry["name"]: entry for entry in magmerge.catalog()}
    assert {"average", "task_arithmetic", "ties", "dare", "dare_ties", "slerp", "wsc"} <= set(
        entries
    )
    assert entries["task_arithmetic"]["parameters"][0] == {
        "name": "lambda",
        "default": 0.3,
        "meaning": "factor on the merged task vector",
    }
    assert "2306.01708" in entries["ties"]["source"]
