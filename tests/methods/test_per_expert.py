"""Parameters with a value for each expert: what each is merged with, whole, in pieces, by rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.tokens.rows import ABSENT
from magmerge.core.errors import ParameterError, StructureError
from magmerge.core.traits import Method
from magmerge.core.validation import check_parameters
from tests.conftest import CommandLine, State, random_state, tuned
from tests.contracts.laws import METHODS, count_for, rows_for
from tests.methods.pieces_law import UNIT, by_pieces, large_layer
from tests.token_models import gather_rows

SEEDS = [4, 5, 6]
NUMBERS = [
    (method, parameter)
    for method in METHODS
    for parameter in method.parameters
    if parameter.per_expert and parameter.default is not None
]
IDS = [f"{method.name}-{parameter.name}" for method, parameter in NUMBERS]


def test_these_parameters_have_a_value_for_each_expert() -> None:
    named = {f"{method.name} {parameter.name}" for method, parameter in NUMBERS}
    assert named == {
        "ties density",
        *(f"{name} p" for name in ("dare", "dare_ties")),
        *(f"{name} {own}" for name in ("della", "della_linear") for own in ("density", "epsilon")),
        *(
            f"{name} {own}"
            for name in ("breadcrumbs", "breadcrumbs_ties")
            for own in ("density", "gamma")
        ),
        "passthrough scale",
    }


@pytest.mark.parametrize(("method", "parameter"), NUMBERS, ids=IDS)
@pytest.mark.parametrize("rescale", [None, "l1"])
def test_equal_numbers_give_the_bits_of_the_number(
    method: Method, parameter: Any, rescale: str | None
) -> None:
    if rescale and "rescale" not in {own.name for own in method.parameters}:
        pytest.skip("has none")
    base, experts = random_state(0), count_for(method)
    models = {"base": base, "experts": [tuned(base, seed) for seed in range(experts)]}
    params = {"rescale": rescale} if rescale else {}
    for value in (parameter.default, 0.25, 1.0 if parameter.name == "density" else 0.1):
        alone, listed = (
            magmerge.merge(
                **models, method=method.name, params={**params, parameter.name: own}, seed=3
            ).state_dict()
            for own in (value, [value] * experts)
        )
        assert all(torch.equal(alone[name], listed[name]) for name in base)


DIFFERENT: list[tuple[str, dict[str, Any]]] = [
    (
        "breadcrumbs",
        {"density": [0.2, 0.5, 1.0], "gamma": [0.1, 0.0, 0.3], "weights": [1.0, 2.0, -1.0]},
    ),
    ("breadcrumbs", {"density": [0.2, 0.5, 0.9], "rescale": "l1"}),
    ("breadcrumbs", {"gamma": [0.2, 0.1, 0.0], "rescale": "inverse"}),
    ("dare", {"p": [0.9, 0.0, 0.3], "normalize": False}),
    ("dare", {"p": [0.9, 0.1, 0.3], "normalize": False, "rescale": "l1"}),
    ("della_linear", {"density": [0.5, 1.0, 0.3], "epsilon": [0.1, 0.4, 0.2]}),
    ("della_linear", {"density": [0.5, 1.0, 0.3], "epsilon": [0.1, 0.4, 0.2], "rescale": "l1"}),
    ("della_linear", {"epsilon": [0.1, 0.4, 0.2], "rescale": "none"}),
]


def alone(name: str, delta: Tensor, place: int, params: dict[str, Any], **more: Any) -> Tensor:
    """What the method makes of one expert, with its own entry of each list."""
    own = {
        key: ([value[place]] if key == "weights" else value[place])
        if isinstance(value, list)
        else value
        for key, value in params.items()
    }
    seeds = {"seeds": [SEEDS[place]]} if magmerge.method(name).random else {}
    return magmerge.method(name).fn(delta.unsqueeze(0), **own, **seeds, **more)


@pytest.mark.parametrize(("name", "params"), DIFFERENT, ids=str)
def test_methods_that_add_up_are_the_sum_of_each_expert_alone(
    name: str, params: dict[str, Any]
) -> None:
    deltas = rows_for(None, (13, 17))
    seeds = {"seeds": SEEDS} if magmerge.method(name).random else {}
    found = magmerge.method(name).fn(deltas, **params, **seeds)
    parts = [alone(name, delta.double(), place, params) for place, delta in enumerate(deltas)]
    assert torch.allclose(found.double(), sum(parts, torch.zeros(())), atol=1e-5)


def slow_trim(delta: Tensor, density: float) -> Tensor:
    """The largest ceil(density n) entries, by a sort."""
    flat = delta.double().reshape(-1)
    order = sorted(range(len(flat)), key=lambda j: (-abs(float(flat[j])), j))
    kept = torch.zeros_like(flat)
    for j in order[: math.ceil(round(density * len(flat), 9))]:
        kept[j] = flat[j]
    return kept.reshape(delta.shape)


def slow_elected(parts: list[Tensor]) -> Tensor:
    """The mean of those that have the sign of the sum, in float64."""
    stack = torch.stack(parts).double()
    agree = (stack * stack.sum(0).sign() > 0).double()
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def test_ties_with_a_density_for_each_expert() -> None:
    deltas, density = rows_for(None, (13, 17)), [0.1, 0.5, 1.0]
    found = magmerge.method("ties").fn(deltas, density=density)
    parts = [slow_trim(delta, own) for delta, own in zip(deltas, density, strict=True)]
    assert torch.allclose(found.double(), slow_elected(parts), atol=1e-6)


def test_ties_elects_in_the_whole_model_with_a_density_for_each_expert() -> None:
    base, density = random_state(0), [0.1, 0.5, 1.0]
    experts = [tuned(base, seed) for seed in range(3)]
    merged = magmerge.merge(
        base=base, experts=experts, method="ties", params={"density": density}
    ).state_dict()
    names = sorted(base)
    parts = [
        slow_trim(torch.cat([(own[name] - base[name]).reshape(-1) for name in names]), share)
        for own, share in zip(experts, density, strict=True)
    ]
    expected = slow_elected(parts)
    for name in names:
        part, expected = expected[: base[name].numel()], expected[base[name].numel() :]
        wanted = base[name].double() + part.reshape(base[name].shape)
        assert torch.allclose(merged[name].double(), wanted, atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ties", {"density": [0.1, 0.5, 1.0], "scope": "tensor"}),
        ("breadcrumbs_ties", {"density": [0.4, 0.5, 0.9], "gamma": [0.1, 0.0, 0.05]}),
        *((name, params) for name, params in DIFFERENT if "scope" not in params),
    ],
    ids=str,
)
def test_pieces_give_the_bits_of_the_whole(name: str, params: dict[str, Any]) -> None:
    layer = large_layer(3)
    before = layer.clone()
    params = {**params, **({"seeds": SEEDS} if magmerge.method(name).random else {})}
    whole = magmerge.method(name).fn(layer, **params)
    assert torch.equal(by_pieces(name, layer, piece=2 * UNIT, **params), whole)
    assert torch.equal(layer, before)


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_rows_that_only_some_experts_have_are_merged_with_the_voters_own(scope: str) -> None:
    name, density = "embed_tokens.weight", [0.2, 0.5, 1.0]
    base = {name: torch.randn(12, 5, generator=torch.Generator().manual_seed(1))}
    experts = [tuned(base, seed, size=0.1) for seed in range(3)]
    lacks: dict[int, list[int]] = {0: [11], 1: [9, 10], 2: [8, 9]}
    views = [
        gather_rows(
            MemoryCheckpoint(state), {name: [ABSENT if r in lacks[k] else r for r in range(12)]}
        )
        for k, state in enumerate(experts)
    ]
    params = {"density": density, "scope": scope}
    models: Any = {"base": base, "experts": views, "method": "ties", "params": params}
    merged = magmerge.merge(**models).state_dict()[name]
    kept = []
    for k, own in enumerate(density):
        rows = [row for row in range(12) if row not in lacks[k]]
        kept.append(torch.zeros(12, 5, dtype=torch.float64))
        kept[k][rows] = slow_trim((experts[k][name] - base[name])[rows], own)
    for row in range(12):
        parts = [kept[k][row] for k in lacks if row not in lacks[k]]
        expected = base[name][row].double() + slow_elected(parts)
        assert torch.allclose(merged[row].double(), expected, atol=1e-5), row


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("ties", {"density": [0.2, 0.3]}, "2 values of density are given for 3 experts"),
        ("dare", {"p": [0.2]}, "1 values of p are given for 3 experts"),
        ("average", {"weights": [1.0]}, "1 weights are given for 3 experts"),
    ],
)
def test_a_list_of_another_length_is_a_fault_whose_remedy_helps(
    base: State, experts: list[State], method: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(StructureError, match=message) as caught:
        magmerge.plan(base=base, experts=experts, method=method, params=params)
    ((name, _),) = params.items()
    assert f"{name}=[0.5, 0.5, 0.5]" in caught.value.remedy
    magmerge.plan(base=base, experts=experts, method=method, params={name: [0.5] * 3})
    with pytest.raises(ParameterError, match=f"{len(params[name])} {name} for 3 experts"):
        magmerge.method(method).fn(rows_for(None, (3, 4)), **params)


def test_entries_are_checked_each_by_itself() -> None:
    for wrong in ([0.2, 0], [0.2, 1.5], [0.2, "x"], [0.2, None], [0.2, math.nan]):
        with pytest.raises(ParameterError, match=r"density \(expert 2\)"):
            check_parameters(magmerge.method("ties"), {"density": wrong})
    with pytest.raises(ParameterError, match=r"density 0\.2"):
        _check_della([0.5, 0.2], 0.3)


def _check_della(density: list[float], epsilon: float) -> None:
    method = magmerge.method("della")
    assert method.check is not None
    method.check(density=density, epsilon=epsilon)


def test_lists_on_the_command_line(magmerge_cli: CommandLine, folders: list[Any]) -> None:
    base, *experts = folders
    out = base.parent / "out"
    told = [word for path in experts for word in ("--expert", path)]
    done = magmerge_cli(
        *("merge", "--base", base, *told, "--method", "ties", out, "--json"),
        *("--set", "density=[0.1, 0.2, 0.3]"),
    )
    assert done.code == 0, done.err
    assert done.json["recipe"]["params"]["density"] == [0.1, 0.2, 0.3]
