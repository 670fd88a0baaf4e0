"""Laws of the compiled kernels: bit for bit what the functions give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import magmerge
from magmerge.core import registry
from magmerge.core.types import Piece, Step, TensorSpec
from magmerge.engine.kernel_steps import by_rank
from magmerge.engine.layer import calibrate_layer, merge_layer
from magmerge.engine.stages import Treatment
from magmerge.engine.stored_pieces import Memory
from magmerge.kernels.arguments import FORMATS, Inputs, is_here
from magmerge.kernels.merging import Calibration, calibrated, merged
from magmerge.kernels.parts import cast, differences, gram, keep_by_rank, observed
from magmerge.linalg.draws import chances_by_rank, chunk_states
from magmerge.linalg.row_norms import row_gram
from magmerge.linalg.survey import surveyed
from magmerge.methods import della
from tests.quick import examples

pytestmark = pytest.mark.skipif(not is_here(), reason="no kernels on this machine")

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ODD = (0.0, -0.0, 1.0, -1.0, 6e-8, 1e-40, -3e-39, 0.5, 1e4, 60000.0)
"""Values that formats treat apart: zeros, subnormal numbers, equals, what is almost too large."""

VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "average": [{}, {"normalize": False}],
    "task_arithmetic": [{}, {"normalize": True, "lambda_": 0.7}],
    "ties": [
        {"scope": "tensor"},
        {"density": 1.0},
        {"density": 0.5, "vote": "weighted", "lambda_": 0.3},
        {"density": 0.37, "normalize": False},
    ],
    "dare": [{}, {"p": 0.5, "rescale": "none"}, {"p": 0.0}, {"rescale": "l1", "p": 0.3}],
    "dare_ties": [{}, {"p": 0.3, "vote": "weighted"}, {"rescale": "l1", "normalize": False}],
    "della": [
        {},
        {"density": 0.3, "epsilon": 0.29, "vote": "weighted", "lambda_": 0.6},
        {"rescale": "none", "normalize": False},
    ],
    "della_linear": [{}, {"density": [1.0, 0.5, 0.9, 0.2, 0.4], "epsilon": 0.05}],
    "breadcrumbs": [{}, {"density": 0.5, "gamma": 0.1, "rescale": "inverse"}, {"density": 1.0}],
    "breadcrumbs_ties": [{"density": 0.4, "gamma": 0.2}, {"rescale": "l1", "gamma": 0.0}],
}
WEIGHTS = (
    [1.0] * 9,
    [0.3, 1.7, 0.0, 2.0, 0.1, 1.0, 0.5, 0.25, 3.0],
    [1.0, -0.4, 2.0, 1.0, -0.0, 1, 1, 1, 1],
)


def stored(count: int, code: str, generator: torch.Generator, spread: float) -> torch.Tensor:
    values = torch.randn(count, generator=generator) * spread
    places = torch.randint(0, max(1, count), (count // 4,), generator=generator)
    picks = torch.randint(0, len(ODD), (count // 4,), generator=generator)
    if count:
        values[places] = torch.tensor(ODD)[picks] * (1 if spread > 0.1 else spread)
    return values.to(TORCH[code])


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)


def of_models(
    experts: int, count: int, codes: Sequence[str], seed: int, start: int = 0
) -> tuple[list[torch.Tensor], Inputs]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [stored(count, code, generator, 1.0) for code in codes[: experts + 1]]
    for expert in tensors[1:]:
        # What an expert did not change, and equal changes.
        expert[::5] = tensors[0][::5].to(expert.dtype)
    formats = [FORMATS[code] for code in codes]
    arrays = [as_array(tensor) for tensor in tensors]
    inputs = Inputs(count, start, arrays[1:], formats[1 : experts + 1], arrays[0], formats[0])
    return tensors, inputs


def bound(
    method: Any, variant: Mapping[str, Any], weights: Sequence[float], experts: int
) -> dict[str, Any]:
    keywords = {parameter.keyword: parameter.default for parameter in method.parameters} | variant
    if isinstance(keywords.get("density"), list):
        keywords["density"] = keywords["density"][:experts]
    if "weights" in keywords:
        keywords["weights"] = None if weights == WEIGHTS[0] else list(weights[:experts])
    return keywords


def supplied(
    method: Any, keywords: dict[str, Any], deltas: torch.Tensor, start: int
) -> dict[str, Any]:
    """What the pipeline fills in."""
    more: dict[str, Any] = {
        name: None for name in ("thresholds", "ratios") if name in method.supplied
    }
    if method.random:
        more["seeds"] = list(range(100, 100 + len(deltas)))
    if method.survey is not None:
        survey = method.survey(
            entries=deltas[0].numel(),
            experts=len(deltas),
            **{**keywords, **{k: v for k, v in more.items() if k == "seeds"}},
        )
        if survey is not None:
            more |= surveyed(survey, deltas)
    if "start" in method.supplied:
        more["start"] = start
    return more


def cases() -> list[tuple[str, int]]:
    return [(name, number) for name, each in VARIANTS.items() for number in range(len(each))]


@pytest.mark.parametrize(("name", "number"), cases())
@settings(max_examples=examples(40), deadline=None)
@given(
    experts=st.integers(1, 5),
    shape=st.sampled_from([(1,), (7,), (3, 128), (5, 129), (2, 1100), (4099,), (9, 31)]),
    codes=st.lists(st.sampled_from(list(TORCH)), min_size=6, max_size=6),
    result=st.sampled_from(list(TORCH)),
    weights=st.sampled_from(WEIGHTS),
    calibration=st.sampled_from(
        [None, ("ellipsoid", "off"), ("ellipsoid", "grow"), ("sphere", "shrink")]
    ),
    seed=st.integers(0, 1000),
)
def test_a_kernel_gives_the_function_s_bits(
    name: str,
    number: int,
    experts: int,
    shape: tuple[int, ...],
    codes: list[str],
    result: str,
    weights: Sequence[float],
    calibration: tuple[str, str] | None,
    seed: int,
) -> None:
    method, count = registry.methods.get(name), int(np.prod(shape))
    keywords = bound(method, VARIANTS[name][number], weights, experts)
    if (
        keywords.get("normalize")
        and name != "ties"
        and "ties" not in name
        and sum(weights[:experts]) == 0
    ):
        return
    start = seed % 3 * 65_000 if "seeds" in method.supplied else 0
    tensors, inputs = of_models(experts, count, codes, seed, start)
    base = tensors[0].float().reshape(shape)
    deltas = torch.stack([tensor.float().reshape(shape) - base for tensor in tensors[1:]])
    more = supplied(method, keywords, deltas, start)
    step = Step(
        TensorSpec("t", shape, result),
        "matrix",
        "merge",
        "",
        calibrated=True,
        sensitive=calibration is not None and calibration[1] == "shrink",
    )
    calibrators: list[Any] = []
    # What is dropped by rank is not calibrated by kernels.
    rows = calibration is not None and len(shape) > 1 and "della" not in name
    if rows:
        calibrators = [(registry.calibrators.get("wsc"), {"target": calibration[0]})]
    treatment = Treatment(calibrators, gated=rows and calibration[1] != "off")
    piece = Piece(0, count, shape, 1000)
    result_of = merge_layer(step, method, {**keywords, **more}, base, deltas.clone())
    expected = calibrate_layer(step, piece, treatment, base, deltas, result_of)
    weight = expected.weight.to(TORCH[result])

    if method.random:
        inputs = inputs._replace(states=chunk_states(more["seeds"], start, start + count))
    fused = method.kernel(
        experts=experts, **{k: v for k, v in {**keywords, **more}.items() if k != "start"}
    )
    if fused.keep == "rank":
        columns = int(np.prod(shape[1:])) if len(shape) > 1 else count
        left = by_rank(fused, inputs, columns, Memory())
        assert left is not None
        fused, inputs = left
    out = np.zeros(count * weight.element_size(), np.uint8)
    if rows:
        done = calibrated(fused, Calibration(*calibration), inputs, shape[1], FORMATS[result], out)
    else:
        done = merged(fused, inputs, 1000, FORMATS[result], out)
    if not bool(weight.isfinite().all()):
        assert done is None
        return
    assert done is not None
    assert np.array_equal(out, as_array(weight.reshape(-1)))
    if rows:
        own = expected.tally
        assert done.before.tolist() == list(own.before)
        assert [tuple(row) for row in done.experts.tolist()] == list(own.experts)
        assert done.cosines.tolist() == list(own.cosines)
        assert done.free.astype(float).tolist() == list(own.free[0])
        assert done.factor.astype(float).tolist() == list(own.xi)
    else:
        assert done == list(expected.tally.before)


def rows_to_rank(columns: int) -> torch.Tensor:
    """Rows that are hard to sort: noise, equals, zeros of both signs, what differs in the last bits
    only, falling, subnormal and of all exponents.
    """
    generator = torch.Generator().manual_seed(columns)
    noise = torch.randn(columns, generator=generator)
    near = 1 + torch.randperm(columns, generator=generator) * 2.0**-23
    wide = torch.ldexp(noise, torch.randint(-140, 120, (columns,), generator=generator).float())
    signs = noise.sign()
    rows = [noise, signs, 0 * signs, near, -near.sort(descending=True).values, noise * 1e-41, wide]
    return torch.stack(rows)


@pytest.mark.parametrize("columns", [1, 2, 31, 511, 513, 2050, 8192, 30_000])
@pytest.mark.parametrize("rescale", ["inverse", "none"])
def test_entries_are_kept_by_their_rank(columns: int, rescale: str) -> None:
    rows, start = rows_to_rank(columns), 65_000
    expected = della._by_rank(rows, 7, (0.5, 0.3), rescale, start)
    states = chunk_states([7], start, start + rows.numel())[0]
    chances = chances_by_rank(columns, 0.5, 0.3).astype(np.float32)
    found = rows.numpy().copy()
    keep_by_rank(found, chances, states, start, inverse=rescale == "inverse")
    assert np.array_equal(found.view(np.int32), expected.view(torch.int32).numpy())


@pytest.mark.parametrize("code", list(TORCH))
def test_every_stored_value_is_widened_and_narrowed_as_torch_does(code: str) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(TORCH["BF16" if code == "F32" else code])
    finite = values[values.isfinite()].contiguous().to(TORCH[code])
    wide = finite.float()
    deltas = np.empty((1, len(wide)), np.float32)
    inputs = Inputs(len(wide), 0, [as_array(finite)], [FORMATS[code]], None, 0)
    assert differences(inputs, deltas)
    assert torch.equal(torch.from_numpy(deltas[0]).view(torch.int32), wide.view(torch.int32))
    out = np.empty(len(wide) * finite.element_size(), np.uint8)
    assert cast(wide.numpy(), FORMATS[code], out)
    assert np.array_equal(out, as_array(finite))


@pytest.mark.parametrize("code", list(TORCH))
def test_rounding_is_to_the_nearest_and_to_even(code: str) -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-150, 128, (200_000,), generator=generator)
    values = torch.ldexp(torch.randn(200_000, generator=generator), exponents.float())
    halfway = torch.arange(0, 1 << 16, dtype=torch.int32) << 13
    values = torch.cat([values, (halfway << 2).view(torch.float32), halfway.view(torch.float32)])
    values = values[values.to(TORCH[code]).isfinite()].contiguous()
    out = np.empty(len(values) * TORCH[code].itemsize, np.uint8)
    assert cast(values.numpy(), FORMATS[code], out)
    assert np.array_equal(out, as_array(values.to(TORCH[code])))


@pytest.mark.parametrize("code", list(TORCH))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_what_is_not_finite_is_told(code: str, bad: float) -> None:
    values = torch.ones(3000)
    values[2999] = bad
    out = np.empty(3000 * TORCH[code].itemsize, np.uint8)
    fits = bool(values.to(TORCH[code]).isfinite().all())
    assert cast(values.numpy(), FORMATS[code], out) == fits
    stored_values = values.to(TORCH[code])
    inputs = Inputs(3000, 0, [as_array(stored_values)], [FORMATS[code]], None, 0)
    sound = differences(inputs, np.empty((1, 3000), np.float32))
    assert sound == bool(stored_values.isfinite().all())


@pytest.mark.parametrize("columns", [1, 7, 128, 129, 1000, 3001])
def test_inner_products_are_those_of_the_function(columns: int) -> None:
    layers = torch.randn(4, 5, columns, generator=torch.Generator().manual_seed(columns))
    expected = row_gram(None, layers)
    assert np.array_equal(gram([layer.numpy() for layer in layers]), expected.numpy())


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3000),
    st.lists(st.sampled_from(list(TORCH)), min_size=5, max_size=5),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, float("inf")]), min_size=2, max_size=2),
    st.integers(0, 1000),
)
def test_a_survey_is_told_what_is_above_and_within(
    experts: int, count: int, codes: list[str], bounds: list[float], seed: int
) -> None:
    tensors, inputs = of_models(experts, count, codes, seed)
    brackets = [[tuple(sorted(bounds)), (0.25, 0.75)]] * experts
    counts = observed(inputs, brackets)
    assert counts is not None
    for k, tensor in enumerate(tensors[1:]):
        sizes = (tensor.float() - tensors[0].float()).abs().numpy()
        for r, (low, high) in enumerate(brackets[k]):
            assert counts[k][0][r] == (sizes > np.float32(high)).sum()
            inside = sizes[(sizes >= np.float32(low)) & (sizes <= np.float32(high))]
            assert np.array_equal(np.sort(counts[k][1][r]), np.sort(inside))


@pytest.mark.parametrize("name", ["average", "ties", "dare_ties"])
def test_functions_take_tensors_that_are_trained(name: str) -> None:
    deltas = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    trained = deltas.clone().requires_grad_()
    method, wsc = magmerge.method(name).fn, magmerge.calibrator("wsc").fn
    result = method(deltas)
    assert torch.equal(method(trained), result)
    assert torch.allclose(wsc(trained, trained.mean(0)), wsc(deltas, deltas.mean(0)))
