"""Adapters merged in factors or in full pieces: the same as the method on the full matrices."""

from __future__ import annotations

import pytest
import torch
from magmerge.binding import bind
from magmerge.checkpoints.adapters.merging import Finished, in_factors, merge_modules
from magmerge.checkpoints.adapters.planning import plan_adapters
from magmerge.reading import Reader
from magmerge.run import Work
from torch import Tensor

from magmerge.core import registry
from magmerge.core.errors import NonFiniteError, ParameterError, StructureError
from magmerge.core.recipe import (
    AdapterOutput,
    Recipe,
    check_calibrations,
    check_parameters,
    keywords,
)
from magmerge.linalg.device import open_device
from tests.adapters.standins import Adapter, factors_of, full, sources_of

SHAPES = {"a.q": (24, 16), "a.k": (16, 24), "b.conv": (12, 4, 3, 3), "only.one": (8, 8)}
METHODS = [method for method in registry.methods if method.experts[0] <= 2]


def adapters(count: int = 2) -> list[Adapter]:
    found = []
    for number in range(count):
        shapes = {n: s for n, s in SHAPES.items() if n != "only.one" or number == 0}
        found.append(Adapter(f"adapter-{number}", factors_of(shapes, 2 + number, number)))
    return found


def merged(
    given: list[Adapter],
    method: str,
    *,
    rank: object = None,
    calibrate: object = None,
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    gate: str = "on",
    **params: object,
) -> dict[str, Finished]:
    sources = sources_of(*given)
    item = registry.methods.get(method)
    recipe = Recipe(
        experts={one.source: one.source for one in given},
        method=item.name,
        params=check_parameters(item, params),
        calibrate=check_calibrations(calibrate),  # type: ignore[arg-type]
        gate=gate,  # type: ignore[arg-type]
        seed=3,
        adapter=AdapterOutput(rank=rank),  # type: ignore[arg-type]
    )
    plan = plan_adapters(recipe, sources, threads=threads, memory="2GB")
    device = open_device("cpu")
    work = Work(plan, bind(recipe), sources, Reader(sources, device), device, recipe.seed)
    assert recipe.adapter is not None
    return merge_modules(work, recipe.adapter, dtype, threads=threads)


def deltas_of(given: list[Adapter], name: str) -> Tensor:
    shape = SHAPES[name]
    zeros = torch.zeros(shape[0], torch.Size(shape[1:]).numel(), dtype=torch.float64)
    return torch.stack([full(one.read(name)) if name in one.modules else zeros for one in given])


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if in_factors(m, keywords(m, check_parameters(m, {})))],
    ids=lambda m: m.name,
)
def test_a_method_in_factors_gives_what_it_gives_on_full_matrices(method: registry.Method) -> None:
    given = adapters(1 if method.experts[1] == 1 else 2)
    found = merged(given, method.name, rank="exact")
    for name, one in found.items():
        wanted = method.fn(deltas_of(given, name).reshape(len(given), *SHAPES[name]))
        # Under model_stock what one adapter alone has cancels.
        assert (full(one.factors) - wanted.flatten(1)).norm() <= 1e-5 * wanted.norm(), name
        assert one.module.error < 1e-6


@pytest.mark.parametrize(
    "item",
    [m for m in METHODS if not in_factors(m, keywords(m, check_parameters(m, {})))],
    ids=lambda m: m.name,
)
def test_a_method_in_full_pieces_is_cut_to_the_nearest_of_its_rank(item: registry.Method) -> None:
    given = adapters(1 if item.experts[1] == 1 else 2)
    params = {"scope": "tensor"} if item.name == "ties" else {}
    whole = merged(given, item.name, rank=1000, **params)
    cut = merged(given, item.name, rank=3, **params)
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


def test_the_default_rank_is_the_largest_of_the_modules_inputs() -> None:
    found = merged(adapters(), "average")
    assert found["a.q"].module.rank == 3
    assert found["only.one"].module.rank == 2


def test_a_module_that_one_adapter_has_is_kept() -> None:
    given = adapters()
    found = merged(given, "task_arithmetic", **{"lambda": 1.0})
    assert torch.allclose(
        full(found["only.one"].factors), full(given[0].read("only.one")), atol=1e-5
    )


@pytest.mark.parametrize("target", ["ellipsoid", "sphere"])
@pytest.mark.parametrize("granularity", ["row", "layer"])
@pytest.mark.parametrize("method", ["average", "ties"])
def test_wsc_comes_after_the_cut_and_keeps_its_formula(
    target: str, granularity: str, method: str
) -> None:
    given = adapters()
    params = {"target": target, "granularity": granularity}
    calibration = {"method": "wsc", "params": params}
    plain = merged(given, method, rank=2)
    found = merged(given, method, rank=2, calibrate=calibration, gate="off")
    wsc = registry.calibrators.get("wsc").fn
    for name, one in found.items():
        cut = full(plain[name].factors)
        xi = wsc(deltas_of(given, name), cut, **params).reshape(-1, 1)
        assert torch.allclose(full(one.factors), xi * cut, atol=2e-5), name
        assert one.module.written == pytest.approx(float((xi * cut).norm()), rel=1e-4)
        norms = [float(delta.norm()) for delta in deltas_of(given, name)]
        assert one.module.norms == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("method", ["average", "ties", "dare", "tsv_m"])
def test_threads_do_not_change_a_bit(method: str) -> None:
    once = merged(adapters(), method, calibrate="wsc")
    twice = merged(adapters(), method, calibrate="wsc", threads=3)
    for name, one in once.items():
        assert torch.equal(one.factors.up, twice[name].factors.up)
        assert torch.equal(one.factors.down, twice[name].factors.down)
        assert one.record == twice[name].record


def test_shapes_of_another_base_are_all_listed() -> None:
    first = Adapter("sd", factors_of({"q": (8, 4), "k": (8, 4)}, 2, 0))
    second = Adapter("sdxl", factors_of({"q": (16, 4), "k": (16, 4)}, 2, 1))
    with pytest.raises(StructureError) as raised:
        merged([first, second], "average")
    assert "q has shape" in str(raised.value)
    assert "k has shape" in str(raised.value)


def test_exact_is_refused_where_no_low_rank_is() -> None:
    with pytest.raises(ParameterError, match="ties does not keep to the ranks"):
        merged(adapters(), "ties", rank="exact")


def test_too_large_for_the_output() -> None:
    big = {name: one._replace(scale=1e12) for name, one in factors_of(SHAPES, 2, 0).items()}
    with pytest.raises(NonFiniteError, match="too large for float16") as raised:
        merged([Adapter("big", big)], "average", dtype=torch.float16)
    assert "a.q" in str(raised.value)
