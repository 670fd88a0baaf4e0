"""Thresholds found in sweeps equal a stable sort of everything, whatever the sample and pieces."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magmerge.core.parameters import UNIT
from magmerge.core.traits import MagnitudeSurvey, Noted, Survey
from magmerge.linalg import selection
from magmerge.linalg import threshold as module
from magmerge.linalg.selection import Array, largest
from magmerge.linalg.survey import LayerSums, SurveyOfEach, brackets_of
from magmerge.linalg.threshold import ThresholdSurvey

Layers = Mapping[str, Tensor]
"""Each layer's task vectors [K, entries], by name."""
Tell = Callable[[Survey, str, int, Tensor], None]


def observe(survey: Survey, name: str, start: int, part: Tensor) -> None:
    survey.observe(name, start, part)


def observe_arrays(survey: Survey, name: str, start: int, part: Tensor) -> None:
    survey.observe(name, start, part.numpy())


def note(survey: Survey, name: str, start: int, part: Tensor) -> None:
    """As a kernel does it, which sees nothing but brackets; where there are none, the arrays."""
    brackets = brackets_of(survey)
    if brackets is None:
        observe_arrays(survey, name, start, part)
        return
    assert isinstance(survey, MagnitudeSurvey)
    for row, pairs in enumerate(brackets):
        sizes = np.abs(part[row].numpy())
        above = [int((sizes > high).sum()) for _, high in pairs]
        within = [sizes[(sizes >= low) & (sizes <= high)][::-1].copy() for low, high in pairs]
        survey.note(Noted(name, start, start + len(sizes), row, above, within))


def swept(survey: Survey, layers: Layers, piece: int, tell: Tell = observe, seed: int = 0) -> int:
    """All sweeps, in pieces in any order; how many had to see everything."""
    whole = 0
    while survey.passes:
        places = [(n, s) for n, layer in layers.items() for s in range(0, layer.shape[1], piece)]
        random.Random(seed).shuffle(places)
        seen = 0
        for name, start in places:
            part = layers[name][:, start : start + piece].clone()
            if survey.wants(name, start, start + part.shape[1]):
                seen += part.shape[1]
                tell(survey, name, start, part)
        whole += seen == sum(layer.shape[1] for layer in layers.values())
        survey.conclude()
    return whole


def kept(survey: Survey, layers: Layers, piece: int = 7) -> dict[str, list[list[Tensor]]]:
    """What the thresholds leave of each layer, by rank and row, cut into pieces."""
    found = {}
    for name, layer in layers.items():
        ranks = survey.keywords(name)["thresholds"]
        found[name] = [
            [
                torch.cat(
                    [largest(row[s : s + piece], t, s) for s in range(0, max(1, len(row)), piece)]
                )
                for row, t in zip(layer, rows, strict=True)
            ]
            for rows in ranks
        ]
    return found


def sorted_out(layers: Layers, rank: int, row: int, *, rounded: bool) -> dict[str, Tensor]:
    """The same by a stable sort of all magnitudes in float64; among equals by name, then place."""
    names = sorted(layers)
    sizes = torch.cat([layers[name][row] for name in names]).abs()
    sizes = sizes.float().double() if rounded else sizes.double()
    order = torch.sort(sizes, descending=True, stable=True).indices[: max(0, rank)]
    mask = torch.zeros(len(sizes), dtype=torch.bool)
    mask[order] = True
    parts = mask.split([layers[name].shape[1] for name in names])
    return {n: layers[n][row] * part for n, part in zip(names, parts, strict=True)}


def check(survey: Survey, layers: Layers, ranks: list[int], *, rounded: bool, piece: int) -> None:
    found = kept(survey, layers, piece)
    for r, rank in enumerate(ranks):
        for row in range(len(next(iter(layers.values())))):
            wanted = sorted_out(layers, rank, row, rounded=rounded)
            for name in layers:
                assert torch.equal(found[name][r][row], wanted[name]), (name, rank, row)


MEMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 1.25, -3.0, 1e-30, 1e-42, -1e-45, 3e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tiny layers, some of them empty, of one to three experts."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(sum))
    rows = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    layers = {}
    for number, size in enumerate(sizes):
        flat = draw(st.lists(MEMBERS, min_size=rows * size, max_size=rows * size))
        layers["badc"[number]] = torch.tensor(flat, dtype=dtype).reshape(rows, size)
    return layers


@settings(deadline=None, max_examples=300)
@given(data=st.data(), layers=models(), piece=st.integers(1, 9), seed=st.integers(0, 99))
def test_they_equal_a_stable_sort(
    data: st.DataObject, layers: dict[str, Tensor], piece: int, seed: int
) -> None:
    entries = sum(layer.shape[1] for layer in layers.values())
    ranks = data.draw(st.lists(st.integers(0, entries + 2), min_size=1, max_size=3))
    rows, dtype = next((len(layer), layer.dtype) for layer in layers.values())
    scope: Any = data.draw(st.sampled_from(["layer", "model"]))
    double = dtype == torch.float64
    tell = data.draw(st.sampled_from([observe, observe_arrays, *([] if double else [note])]))
    survey = ThresholdSurvey(entries, ranks, scope=scope, experts=rows)
    bound = data.draw(st.sampled_from([1, 5, 1 << 20]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CROWD", {"layer": bound, "model": bound})
        patch.setattr(module, "SPARE", 0.0)
        if data.draw(st.booleans()):
            # A sample that has nothing to do with the layers: its bracket may well fail.
            sample = data.draw(st.lists(MEMBERS, min_size=1, max_size=60))
            survey.prepare(torch.tensor([sample] * rows, dtype=dtype))
        swept(survey, layers, piece, tell, seed)
    check(survey, layers, ranks, rounded=scope == "model", piece=piece)


def random_model(kind: str = "normal", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for name, size in (("b", 3 * UNIT), ("c", 777), ("a", 5 * UNIT + 1)):
        layer = torch.randn(2, size, generator=generator, dtype=torch.float64)
        if kind == "bfloat16":
            base = torch.randn(size, generator=generator, dtype=torch.float64).bfloat16()
            layer = (base.double() + 0.05 * layer).bfloat16().double() - base.double()
        elif kind == "rows of different size":
            layer *= torch.rand(size // 97 + 1, generator=generator).repeat_interleave(97)[:size]
        elif kind == "one value":
            layer = layer.sign()
        elif kind == "mostly zeros":
            layer[:, size // 100 :] = 0
        layers[name] = layer.to(dtype)
    return layers


def sample_of(layers: Layers, count: int) -> Tensor:
    flat = torch.cat(list(layers.values()), dim=1)
    return flat[:, :: max(1, flat.shape[1] // count)]


KINDS = ["normal", "bfloat16", "rows of different size", "one value", "mostly zeros"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tell", [observe, note])
def test_one_sweep_and_a_look_are_enough_for_a_model(kind: str, tell: Tell) -> None:
    layers, ranks = random_model(kind), [1234, 100_000]
    entries = sum(layer.shape[1] for layer in layers.values())
    survey = ThresholdSurvey(entries, ranks, scope="model", experts=2)
    assert survey.samples
    survey.prepare(sample_of(layers, survey.samples))
    assert swept(survey, layers, UNIT, tell) == 1
    check(survey, layers, ranks, rounded=True, piece=70_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sample", ["too small", "too large", "none"])
def test_too_many_values_and_wrong_samples_cost_sweeps_only(
    dtype: torch.dtype, sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CROWD", {"layer": 5000, "model": 5000})
    layers, ranks = {"a": random_model(dtype=dtype)["a"]}, [70_000, 3]
    survey = ThresholdSurvey(layers["a"].shape[1], ranks)
    if sample != "none":
        size = 1e-3 if sample == "too small" else 1e3
        survey.prepare(size * sample_of(layers, survey.samples))
    assert swept(survey, layers, UNIT) <= 6
    check(survey, layers, ranks, rounded=False, piece=70_000)


@pytest.mark.parametrize("kind", ["normal", "one value"])
def test_tensors_of_an_accelerator_are_counted_there(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As there is none here, what numpy would do on the CPU is done by torch, as on a device."""
    monkeypatch.setattr(selection, "comparable", lambda values: values)
    monkeypatch.setattr(module, "CROWD", {"layer": 5000, "model": 5000})
    layers, ranks = random_model(kind), [1234, 100_000]
    entries = sum(layer.shape[1] for layer in layers.values())
    survey = ThresholdSurvey(entries, ranks, scope="model", experts=2)
    survey.prepare(sample_of(layers, survey.samples))
    swept(survey, layers, UNIT)
    check(survey, layers, ranks, rounded=True, piece=70_000)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CROWD", {"layer": 5000, "model": 5000})
    layers = random_model("bfloat16")
    entries = sum(layer.shape[1] for layer in layers.values())
    survey = ThresholdSurvey(entries, [9999], scope="model")
    parts = [
        (name, start, layer[:, start : start + 8192])
        for name, layer in layers.items()
        for start in range(0, layer.shape[1], 8192)
    ]
    with ThreadPoolExecutor(4) as pool:
        while survey.passes:
            seen = [p for p in parts if survey.wants(p[0], p[1], p[1] + p[2].shape[1])]
            list(pool.map(lambda part: survey.observe(*part), seen))
            survey.conclude()
    check(survey, layers, [9999], rounded=True, piece=70_000)


def test_surveys_of_each_hand_on_brackets_and_notes() -> None:
    layers = {"a": random_model()["a"]}
    entries = layers["a"].shape[1]
    ranks = [[10, entries // 2], [7, 40_000]]
    each = SurveyOfEach([ThresholdSurvey(entries, own) for own in ranks])
    each.prepare(sample_of(layers, each.samples))
    sums = LayerSums(lambda start, run, first: run.double().sum(1), lambda total: {}, each)
    while each.passes:
        brackets = sums.brackets
        assert brackets is None or [len(pairs) for pairs in brackets] == [2, 2]
        for start in range(0, entries, UNIT):
            part = layers["a"][:, start : start + UNIT]
            if sums.wants("a", start, start + part.shape[1]):
                note(sums, "a", start, part)
        sums.conclude()
        assert sums.takes_arrays == bool(each.passes)
    assert sums.passes == 1
    assert sums.brackets is None
    found = kept(each, layers, 70_000)["a"]
    for row, own in enumerate(ranks):
        for r, rank in enumerate(own):
            wanted = sorted_out({"a": layers["a"]}, rank, row, rounded=False)["a"]
            assert torch.equal(found[r][row], wanted)


def test_neighbours_that_are_alike_widen_the_bracket() -> None:
    generator = np.random.default_rng(0)
    sizes = np.abs(generator.normal(size=1 << 15)).astype(np.float32)
    rough = sizes * np.repeat(generator.uniform(0.1, 2, size=256), 128).astype(np.float32)

    def deviation(row: Array) -> float:
        return module._deviation(row, 0.2, float(np.quantile(row, 0.8)))

    assert deviation(rough) > 3 * deviation(sizes)
    slow = sizes * np.repeat([0.5, 1.0, 1.5, 2.0], 1 << 13).astype(np.float32)
    single = math.sqrt(0.2 * 0.8 * len(slow))
    assert deviation(slow) < 1.5 * single


def test_these_modules_import_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from magmerge.linalg import selection, survey, tally, threshold\n"
        "found = threshold.ThresholdSurvey(3, [2])\n"
        "while found.passes:\n"
        "    found.observe('a', 0, np.array([[1.0, -3.0, 2.0]], dtype=np.float32))\n"
        "    found.conclude()\n"
        "assert found.keywords('a')['thresholds'][0][0].value < 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
