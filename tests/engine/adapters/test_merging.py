"""Adapters merged in factors or in full pieces: the same as the method on the full matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.checkpoints.adapters.nouns import LowRank
from magmerge.core import registry
from magmerge.core.errors import NonFiniteError, ParameterError, StructureError
from magmerge.core.traits import Method
from magmerge.core.types import LayerRecord
from magmerge.core.validation import check_parameters, keywords
from magmerge.engine.adapters.adapter_result import AdapterResult
from magmerge.engine.adapters.module_merge import ModuleRecord
from magmerge.engine.stages import rotates
from tests.checkpoints.adapters.standins import Factors, factors_of, folder_of, full

SHAPES = {"a.q": (24, 16), "a.k": (16, 24), "b.conv": (12, 4, 3, 3), "only.one": (8, 8)}
METHODS = [method for method in registry.methods if method.experts[0] <= 2]
Merge = Callable[..., "dict[str, Finished]"]


class Finished(NamedTuple):
    """A merged module: its factors, and what is told of it."""

    factors: LowRank
    module: ModuleRecord
    record: LayerRecord


def in_factors(method: Method) -> bool:
    """Whether the method, as it is by default, is the same in coordinates."""
    return rotates(method, keywords(method, check_parameters(method, {})))


def adapters(count: int = 2) -> list[Factors]:
    found = []
    for number in range(count):
        shapes = {n: s for n, s in SHAPES.items() if n != "only.one" or number == 0}
        found.append(factors_of(shapes, 2 + number, number))
    return found


@pytest.fixture
def merged(tmp_path: Path) -> Merge:
    """Merge adapters through the front door; each is written once."""
    folders: dict[int, Path] = {}

    def merge(experts: list[Factors], method: str, **options: Any) -> dict[str, Finished]:
        for one in experts:
            if id(one) not in folders:
                folders[id(one)] = folder_of(tmp_path / f"adapter-{len(folders)}", one)
        paths = {f"adapter-{place}": folders[id(one)] for place, one in enumerate(experts)}
        result = magmerge.merge(experts=paths, method=method, seed=3, **options)
        assert isinstance(result, AdapterResult)
        assert result.content is not None
        modules = {one.name: one for one in result.modules}
        records = {one.name: one for one in result.records}
        return {
            name: Finished(factors, modules[name], records[name])
            for name, factors in result.content.modules.items()
        }

    return merge


def deltas_of(given: list[Factors], name: str) -> Tensor:
    shape = SHAPES[name]
    zeros = torch.zeros(shape[0], torch.Size(shape[1:]).numel(), dtype=torch.float64)
    return torch.stack([full(one[name]) if name in one else zeros for one in given])


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if in_factors(m)],
    ids=lambda m: m.name,
)
def test_a_method_in_factors_gives_what_it_gives_on_full_matrices(
    merged: Merge, method: Method
) -> None:
    given = adapters(1 if method.experts[1] == 1 else 2)
    params = {"lambda": 1.0} if method.name == "task_arithmetic" else {}
    found = merged(given, method.name, rank="exact", params=params)
    for name, one in found.items():
        layer = deltas_of(given, name).reshape(len(given), *SHAPES[name])
        wanted = method.fn(layer, **keywords(method, check_parameters(method, params)))
        # Under model_stock what one adapter alone has cancels.
        assert (full(one.factors) - wanted.flatten(1)).norm() <= 1e-5 * wanted.norm(), name
        assert one.module.error < 1e-6


@pytest.mark.parametrize(
    "item",
    [m for m in METHODS if not in_factors(m)],
    ids=lambda m: m.name,
)
def test_a_method_in_full_pieces_is_cut_to_the_nearest_of_its_rank(
    merged: Merge, item: Method
) -> None:
    given = adapters(1 if item.experts[1] == 1 else 2)
    params = {"scope": "tensor"} if item.name == "ties" else {}
    whole = merged(given, item.name, rank=1000, params=params)
    cut = merged(given, item.name, rank=3, params=params)
    for name, one in cut.items():
        delta = full(whole[name].factors)
        if not item.random:
            layer = deltas_of(given, name).float().reshape(len(given), *SHAPES[name])
            wanted = item.fn(layer, **keywords(item, check_parameters(item, params)))
            gap = (delta - wanted.double().flatten(1)).norm()
            assert gap <= 1e-5 * wanted.norm() + 1e-12, name
        if not delta.any():
            assert not full(one.factors).any()
            continue
        values = torch.linalg.svdvals(delta)
        best = float(values[3:].norm() / values.norm())
        assert one.module.error == pytest.approx(best, abs=2e-3)
        assert float((delta - full(one.factors)).norm() / delta.norm()) == pytest.approx(
            best, abs=2e-3
        )
        assert one.factors.up.shape[1] <= 3


def test_the_default_rank_is_the_largest_of_the_modules_inputs(merged: Merge) -> None:
    found = merged(adapters(), "average")
    assert found["a.q"].module.rank == 3
    assert found["only.one"].module.rank == 2


def test_each_rule_of_the_rank(merged: Merge) -> None:
    given = adapters()
    assert merged(given, "average", rank="2")["a.q"].module.rank == 2
    assert merged(given, "average", rank="exact")["a.q"].module.rank == 5
    values = torch.linalg.svdvals(deltas_of(given, "a.q").mean(0)).square()
    enough = int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
    assert merged(given, "average", rank="auto", energy=0.9)["a.q"].module.rank == enough


def test_a_module_that_one_adapter_has_is_kept(merged: Merge) -> None:
    given = adapters()
    found = merged(given, "task_arithmetic", params={"lambda": 1.0})
    assert torch.allclose(full(found["only.one"].factors), full(given[0]["only.one"]), atol=1e-5)


@pytest.mark.parametrize("target", ["ellipsoid", "sphere"])
@pytest.mark.parametrize("granularity", ["row", "layer"])
@pytest.mark.parametrize("method", ["average", "ties"])
def test_wsc_comes_after_the_cut_and_keeps_its_formula(
    merged: Merge, target: str, granularity: str, method: str
) -> None:
    given = adapters()
    params = {"target": target, "granularity": granularity}
    calibration = {"method": "wsc", "params": params}
    plain = merged(given, method, rank=2)
    found = merged(given, method, rank=2, calibrate=calibration, gate="off", bound="off")
    wsc = registry.calibrators.get("wsc").fn
    for name, one in found.items():
        cut = full(plain[name].factors)
        xi = wsc(deltas_of(given, name), cut, **params).reshape(-1, 1)
        assert torch.allclose(full(one.factors), xi * cut, atol=2e-5), name
        assert one.module.written == pytest.approx(float((xi * cut).norm()), rel=1e-4)
        norms = [float(delta.norm()) for delta in deltas_of(given, name)]
        assert one.module.norms == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("method", ["average", "ties", "dare", "tsv_m"])
def test_threads_do_not_change_a_bit(merged: Merge, method: str) -> None:
    given = adapters()
    once = merged(given, method, calibrate="wsc", threads=1)
    twice = merged(given, method, calibrate="wsc", threads=3)
    for name, one in once.items():
        assert torch.equal(one.factors.up, twice[name].factors.up)
        assert torch.equal(one.factors.down, twice[name].factors.down)
        assert one.record == twice[name].record


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties", "sce"])
def test_rows_that_a_method_removes_stay_removed(merged: Merge, method: str) -> None:
    """Rounding leaves something of them after the cut, and WSC would give that the full length."""
    weak = torch.ones(64, 1).index_fill(0, torch.arange(6), 0.05)
    experts = [
        {n: one._replace(up=weak * one.up) for n, one in factors_of({"q": (64, 64)}, 8, k).items()}
        for k in (1, 2)
    ]
    for name, one in merged(experts, method, calibrate="wsc").items():
        assert one.record.xi_max < 1e6, (name, one.record.xi_max)


def test_shapes_of_another_base_are_all_listed(merged: Merge) -> None:
    first = factors_of({"q": (8, 4), "k": (8, 4)}, 2, 0)
    second = factors_of({"q": (16, 4), "k": (16, 4)}, 2, 1)
    with pytest.raises(StructureError) as raised:
        merged([first, second], "average")
    assert "q has shape" in str(raised.value)
    assert "k has shape" in str(raised.value)


def test_exact_is_refused_where_no_low_rank_is(merged: Merge) -> None:
    with pytest.raises(ParameterError, match="ties does not keep to the ranks"):
        merged(adapters(), "ties", rank="exact")


def test_too_large_for_the_output(merged: Merge) -> None:
    big = {name: one._replace(scale=1e12) for name, one in factors_of(SHAPES, 2, 0).items()}
    with pytest.raises(NonFiniteError, match="too large for float16") as raised:
        merged([big], "average", dtype="float16")
    assert "tensor a.k in the result" in str(raised.value)
