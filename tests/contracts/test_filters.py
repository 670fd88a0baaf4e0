"""A parameter that varies by layer gives each layer what a run with its value gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.traits import Method, Parameter
from magmerge.core.validation import check_parameters
from tests.conftest import State, random_state, tuned
from tests.contracts.laws import METHODS

CANDIDATES = (0.5, 0.25, 2, 3, True, False, "tensor", "weighted", "l1", "none", "tikhonov")
FILTER = "layers.0"
CASES = [(method, parameter) for method in METHODS for parameter in method.parameters]


def other_value(method: Method, parameter: Parameter) -> Any:
    weights = [3.0, 1.0, 2.0][: method.experts[1] or 3]
    for value in (*CANDIDATES, weights):
        if type(value) is type(parameter.default) and value == parameter.default:
            continue
        try:
            checked = check_parameters(method, {parameter.name: value})
            if method.check is not None:
                method.check(**{p.keyword: checked[p.name] for p in method.parameters})
        except MagmergeError:
            continue
        return value
    raise AssertionError(f"no other value for {parameter.name} of {method.name}")


@pytest.fixture(scope="module")
def models() -> list[State]:
    base = random_state(0)
    return [base, *(tuned(base, seed) for seed in range(3))]


@pytest.mark.parametrize(
    ("method", "parameter"), CASES, ids=[f"{m.name}-{p.name}" for m, p in CASES]
)
def test_each_layer_is_merged_with_its_own_value(
    method: Method, parameter: Parameter, models: list[State]
) -> None:
    other, others = other_value(method, parameter), {}

    def run(value: Any, threads: int = 1) -> State:
        given = {} if value is None else {parameter.name: value}
        return magmerge.merge(
            base=models[0],
            experts=models[1 : 1 + (method.experts[1] or 3)],
            method=method.name,
            params={**given, **others},
            threads=threads,
            seed=7,
        ).state_dict()

    items = [{"filter": FILTER, "value": other}]
    try:
        varied = run(items)
    except ParameterError as error:
        assert method.name == "ties"
        assert parameter.name in ("density", "scope")
        if parameter.name == "scope":
            return
        assert "scope=tensor" in error.remedy
        others = {"scope": "tensor"}
        varied = run(items)
    plain, set_otherwise, threaded = run(None), run(other), run(items, threads=2)
    for name in models[0]:
        expected = set_otherwise if FILTER in name else plain
        assert torch.equal(varied[name], expected[name]), name
        assert torch.equal(varied[name], threaded[name]), name
