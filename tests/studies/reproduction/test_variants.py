"""Which models are compared, and the two controls of FSC."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magmerge.core.errors import ParameterError, UnknownNameError
from magmerge.core.types import LayerRecord
from magmerge.studies.reproduction.run_spec import (
    RunOptions,
    Variant,
    control,
    request_of,
    spaces_of,
)


def record(name: str, xi: float) -> LayerRecord:
    return LayerRecord(
        name, "merge", "matrix", False, xi, xi, xi, xi, 1.0, xi, None, calibrated_by=("fsc",)
    )


def test_draws_multiply_only_what_depends_on_samples() -> None:
    options = RunOptions(methods=["ties"], spaces=["none", "wsc", "fsc"], seeds=2)
    found = [one.name for one in request_of("clip-b32", None, options).variants]
    assert found == ["ties", "ties+wsc", "ties+fsc@0", "ties+fsc@1"]


def test_spaces_are_put_in_order_and_checked() -> None:
    assert spaces_of(["dsc", "none"]) == ("none", "dsc")
    with pytest.raises(UnknownNameError, match="did you mean fsc"):
        spaces_of(["fcs"])
    with pytest.raises(ParameterError):
        spaces_of([])


def test_the_global_control_puts_the_mean_factor_everywhere() -> None:
    origin = {"a": torch.ones(2), "b": torch.zeros(2), "norm": torch.ones(1)}
    plain = {"a": torch.full((2,), 3.0), "b": torch.full((2,), 1.0), "norm": torch.full((1,), 2.0)}
    uncalibrated = replace(record("norm", 7.0), calibrated_by=())
    found = control("global", origin, plain, [record("a", 1), record("b", 2), uncalibrated], 0)
    assert found["a"].tolist() == [1 + 1.5 * 2] * 2
    assert found["b"].tolist() == [1.5] * 2
    assert found["norm"].tolist() == [2.0]


def test_the_shuffled_control_keeps_the_factors_and_moves_them() -> None:
    names = [f"layer{n}" for n in range(8)]
    origin = {name: torch.zeros(1) for name in names}
    plain = {name: torch.ones(1) for name in names}
    records = [record(name, 1.0 + n) for n, name in enumerate(names)]
    found = [control("shuffled", origin, plain, records, seed) for seed in (0, 0, 1)]
    values = [[float(one[name]) for name in names] for one in found]
    assert values[0] == values[1] != values[2]
    assert sorted(values[0]) == [1.0 + n for n in range(8)]
    assert values[0] != [1.0 + n for n in range(8)]


def test_a_variant_without_a_draw_is_named_without_one() -> None:
    assert Variant("iso_c", "none").name == "iso_c"
    assert Variant("iso_c", "dsc", 3).name == "iso_c+dsc@3"
