from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import magmerge
from magmerge.core.traits import Survey
from magmerge.linalg.selection import kept_count, largest
from magmerge.linalg.threshold import ThresholdSurvey
from magmerge.methods.sparsify import trimmed
from tests.contracts.laws import rows_for


def slow_ties(
    deltas: Tensor,
    density: float,
    lam: float = 1.0,
    weights: list[float] | None = None,
    vote: str = "plain",
    normalize: bool = True,
) -> Tensor:
    """Algorithm 1 of the paper, entry by entry, in float64; or with mergekit's vote and sum."""
    k, shape = len(deltas), deltas.shape[1:]
    flat = deltas.double().reshape(k, -1)
    weights = weights or [1.0] * k
    keep = math.ceil(density * flat.shape[1])
    trimmed = torch.zeros_like(flat)
    for i in range(k):
        order = sorted(range(flat.shape[1]), key=lambda j: (-abs(float(flat[i, j])), j))
        for j in order[:keep]:
            trimmed[i, j] = flat[i, j]
    out = torch.zeros(flat.shape[1], dtype=torch.float64)
    for j in range(flat.shape[1]):
        column = [float(trimmed[i, j]) for i in range(k)]
        heard = weights if vote == "weighted" else [1.0] * k
        mass = sum(w * v for w, v in zip(heard, column, strict=True))
        sign = (mass > 0) - (mass < 0) or (vote == "weighted")
        agreeing = [i for i in range(k) if sign and column[i] * sign > 0]
        share = sum(weights[i] for i in agreeing)
        if share:
            total = lam * sum(weights[i] * column[i] for i in agreeing)
            out[j] = total / share if normalize else total
    return out.reshape(shape)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
@pytest.mark.parametrize("vote", ["plain", "weighted"])
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_a_slow_loop(
    density: float, weights: list[float] | None, vote: str, normalize: bool
) -> None:
    deltas = rows_for(None, (9, 11))
    params = {"weights": weights, "vote": vote, "normalize": normalize}
    found = magmerge.method("ties").fn(deltas, density=density, lambda_=0.7, **params)
    expected = slow_ties(deltas, density, 0.7, **params)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_mergekits_vote_gives_a_tie_to_plus() -> None:
    deltas = torch.tensor([[1.0], [-1.0]])
    fn = magmerge.method("ties").fn
    assert fn(deltas, density=1.0).tolist() == [0.0]
    assert fn(deltas, density=1.0, vote="weighted").tolist() == [1.0]


def test_equal_magnitudes_are_taken_in_order() -> None:
    deltas = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.5]])
    assert trimmed(deltas, 0.4)[0].tolist() == [1.0, -1.0, 0.0, 0.0, 0.0]


def test_opposite_entries_of_equal_size_cancel_to_zero() -> None:
    deltas = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert magmerge.method("ties").fn(deltas, density=1.0).tolist() == [0.0, 2.0]


def sweep_all(survey: Survey, layers: dict[str, Tensor], piece: int) -> None:
    """All sweeps over all layers in pieces, from the last to the first."""
    while survey.passes:
        for name in reversed(layers):
            layer = layers[name]
            for start in reversed(range(0, layer.shape[1], piece)):
                stop = min(start + piece, layer.shape[1])
                if survey.wants(name, start, stop):
                    survey.observe(name, start, layer[:, start:stop].clone())
        survey.conclude()


MEMBERS = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 1.25, -3.0, 1e-30])


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(MEMBERS, min_size=6, max_size=40),
    density=st.floats(0.01, 1.0),
    piece=st.integers(1, 9),
)
def test_the_model_threshold_equals_a_sort_of_the_whole_model(
    values: list[float], density: float, piece: int
) -> None:
    split = len(values) // 3
    layers = {"b": torch.tensor([values[:split]]), "a": torch.tensor([values[split:]])}
    rank = kept_count(density, len(values))
    survey = ThresholdSurvey(len(values), [rank], scope="model")
    sweep_all(survey, layers, piece)
    kept = {n: largest(d[0], survey.keywords(n)["thresholds"][0][0]) for n, d in layers.items()}
    flat = [(n, i) for n in sorted(layers) for i in range(layers[n].numel())]
    order = sorted(flat, key=lambda at: -abs(float(layers[at[0]][0, at[1]])))
    wanted = set(order[: math.ceil(density * len(values))])
    for name, layer in layers.items():
        expected = [float(v) if (name, i) in wanted else 0.0 for i, v in enumerate(layer[0])]
        assert kept[name].tolist() == expected


@pytest.mark.parametrize(
    "kind", ["normal", "few values", "one value", "mostly zeros", "scaled rows"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_threshold_equals_a_stable_sort(kind: str, dtype: torch.dtype) -> None:
    entries, ranks = 300_000, [60_000, 2_100]
    values = torch.randn(2, entries, generator=torch.Generator().manual_seed(1)).to(dtype)
    if kind == "few values":
        values = (values * 4).round() / 4
    elif kind == "one value":
        values = values.sign()
    elif kind == "mostly zeros":
        values[:, entries // 100 :] = 0
    elif kind == "scaled rows":
        values *= torch.logspace(-3, 3, entries, dtype=dtype)
    survey = ThresholdSurvey(entries, ranks)
    assert survey.samples > 0
    survey.prepare(values[:, :: entries // survey.samples])
    sweep_all(survey, {"layer": values}, 1 << 16)
    for rank, thresholds in zip(ranks, survey.keywords("layer")["thresholds"], strict=True):
        for row, threshold in zip(values, thresholds, strict=True):
            order = torch.sort(row.abs(), descending=True, stable=True).indices[:rank]
            expected = torch.zeros_like(row)
            expected[order] = row[order]
            found = [largest(row[i : i + 70_000], threshold, i) for i in range(0, entries, 70_000)]
            assert torch.equal(torch.cat(found), expected)


def test_a_bracket_that_fails_is_found_out() -> None:
    values = torch.randn(1, 300_000, generator=torch.Generator().manual_seed(2))
    survey = ThresholdSurvey(300_000, [1000])
    survey.prepare(torch.full((1, survey.samples), 1e-3))
    sweep_all(survey, {"layer": values}, 1 << 16)
    threshold = survey.keywords("layer")["thresholds"][0][0]
    assert int((largest(values[0], threshold) != 0).sum()) == 1000


def test_model_scope_keeps_the_density_in_the_model_not_in_each_tensor() -> None:
    base = {"small.weight": torch.zeros(10, 10), "large.weight": torch.zeros(10, 10)}
    generator = torch.Generator().manual_seed(0)
    expert = {
        "small.weight": 0.001 * torch.randn(10, 10, generator=generator),
        "large.weight": torch.randn(10, 10, generator=generator),
    }
    other = {name: tensor.flip(0) for name, tensor in expert.items()}

    def kept(scope: str) -> dict[str, int]:
        result = magmerge.merge(
            base=base, experts=[expert, other], method="ties", params={"scope": scope}
        )
        return {n: int((t != 0).sum()) for n, t in result.state_dict().items()}

    assert kept("tensor")["small.weight"] >= 20
    assert kept("model")["small.weight"] == 0
    assert kept("model")["large.weight"] >= 40
