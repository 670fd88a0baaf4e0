"""Items for layers and for single experts, regular expressions, and points that are no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import magmerge
from magmerge.cli.settings import parse_settings
from magmerge.core import registry
from magmerge.core.errors import MagmergeError, ParameterError, StructureError
from magmerge.core.filters import settled
from magmerge.core.recipe import Recipe
from magmerge.core.validation import check_calibrations, check_parameters
from tests.conftest import CommandLine, State

TIES = registry.methods.get("ties")


def blocks(seed: int, stacks: dict[str, int] = {"model.layers": 6}) -> State:  # noqa: B006
    torch.manual_seed(seed)
    names = [f"{stack}.{number}" for stack, size in stacks.items() for number in range(size)]
    inner = [f"{name}.{part}.weight" for name in names for part in ("attn", "mlp")]
    return {n: torch.randn(4, 4) for n in ("embed_tokens.weight", *inner, "lm_head.weight")}


def factors(base: State, expert: State, merged: State) -> dict[str, float]:
    """By what each tensor's task vector was multiplied."""
    return {
        name: float(((merged[name] - own) / (expert[name] - own)).double().median())
        for name, own in base.items()
    }


def varied(items: Any, **more: Any) -> dict[str, float]:
    base, expert = blocks(0, **more), blocks(1, **more)
    merged = magmerge.merge(base=base, experts=[expert], params={"lambda": items}).state_dict()
    return factors(base, expert, merged)


def test_items_may_be_for_some_layers_and_points_run_through_them() -> None:
    found = varied(
        [
            {"layers": [0, 3], "value": {"gradient": [0.0, 1.0]}},
            {"layers": [3, 4], "filter": "mlp", "value": [0.2, 0.4]},
            {"layers": [4, 6], "value": 0.7},
            {"value": 0.1},
        ]
    )
    expected = {"embed_tokens.weight": 0.0, "lm_head.weight": 0.7}
    for part in ("attn", "mlp"):
        own = [0.0, 0.5, 1.0, 0.4 if part == "mlp" else 0.1, 0.7, 0.7]
        expected |= {f"model.layers.{n}.{part}.weight": value for n, value in enumerate(own)}
    assert found == pytest.approx(expected, abs=1e-4)


def test_layers_are_those_of_a_stack_by_its_name() -> None:
    stacks = {"encoder.block": 2, "decoder.block": 3}
    items = [{"layers": [1, 3], "stack": "decoder", "value": 0.5}, {"value": 1.0}]
    found = varied(items, stacks=stacks)
    half = {name for name, value in found.items() if value == pytest.approx(0.5, abs=1e-4)}
    inner = {f"decoder.block.{n}.{part}.weight" for n in (1, 2) for part in ("attn", "mlp")}
    assert half == {*inner, "lm_head.weight"}
    with pytest.raises(ParameterError, match="counted in one stack") as caught:
        varied([{"layers": [0, 1], "value": 0.5}], stacks={"encoder.block": 3, "decoder.block": 3})
    assert "stack:" in caught.value.remedy
    with pytest.raises(ParameterError, match=r"are not in decoder\.block, which has 3") as caught:
        varied([{"layers": [0, 4], "stack": "decoder", "value": 0.5}], stacks=stacks)
    assert "3" in caught.value.remedy


def test_a_model_without_blocks_has_no_layers() -> None:
    plain = {"base": {"a.weight": torch.zeros(3, 2)}, "experts": [{"a.weight": torch.ones(3, 2)}]}
    with pytest.raises(ParameterError, match="no numbered blocks") as caught:
        magmerge.plan(**plain, params={"lambda": [{"layers": [0, 1], "value": 0.5}]})
    assert "filter:" in caught.value.remedy
    magmerge.plan(**plain, params={"lambda": [{"filter": "a", "value": 0.5}]})


def test_a_regular_expression_between_slashes_is_searched_for_in_names() -> None:
    found = varied([{"filter": r"/layers\.[0-2]\.(mlp|attn)/", "value": 0.5}, {"value": 1.0}])
    half = {name for name, value in found.items() if value == pytest.approx(0.5, abs=1e-4)}
    assert half == {f"model.layers.{n}.{part}.weight" for n in range(3) for part in ("mlp", "attn")}
    params, _ = parse_settings(["lambda@/mlp/=0.3", r"lambda@/a=b\.@/=1", "lambda=0.1"], [], "ties")
    assert params["lambda"] == [
        {"filter": "/mlp/", "value": 0.3},
        {"filter": r"/a=b\.@/", "value": 1},
        {"value": 0.1},
    ]


@pytest.mark.parametrize("pattern", ["/(a/", "/(?=a)b/", r"/\bmlp/", r"/(a)\1/", f"/{'a' * 300}/"])
def test_patterns_that_cannot_be_searched_for_are_refused(pattern: str) -> None:
    with pytest.raises(ParameterError, match=r"the filter .* of lambda") as caught:
        check_parameters(TIES, {"lambda": [{"filter": pattern, "value": 1}]})
    assert "/layers" in caught.value.remedy


def test_each_expert_may_have_items_of_its_own() -> None:
    base, experts = blocks(0), [blocks(1), blocks(2)]
    weights = [
        [
            {"filter": "mlp", "layers": [0, 3], "value": [0.0, 1.0]},
            {"filter": "mlp", "value": 0.3},
            {"value": 0.5},
        ],
        0.4,
    ]
    given = {"lambda": 1.0, "weights": weights}
    result = magmerge.merge(base=base, experts=experts, params=given)
    merged = result.state_dict()
    for name, own in base.items():
        number = int(name.split(".")[2]) if "layers" in name else 0
        first = (number / 2 if number < 3 else 0.3) if "mlp" in name else 0.5
        expected = own + first * (experts[0][name] - own) + 0.4 * (experts[1][name] - own)
        assert torch.allclose(merged[name], expected, atol=1e-5), name
    recipe = Recipe.from_yaml(result.recipe.to_yaml())
    assert check_parameters(registry.methods.get(recipe.method), recipe.params) == recipe.params
    models = {"base": base, "expert-1": experts[0], "expert-2": experts[1]}
    again = magmerge.run(recipe, models=models).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())


def test_what_an_experts_items_leave_out_has_the_default() -> None:
    base, experts = blocks(0), [blocks(1), blocks(2)]
    weights = [[{"filter": "mlp", "value": 0.0}], 1.0]
    merged = magmerge.merge(
        base=base, experts=experts, params={"lambda": 1.0, "weights": weights}
    ).state_dict()
    name = "model.layers.0.attn.weight"
    expected = base[name] + (experts[0][name] - base[name]) + (experts[1][name] - base[name])
    assert torch.allclose(merged[name], expected, atol=1e-5)
    density = [[{"filter": "mlp", "value": 0.5}], {"gradient": [0.1, 0.9]}]
    checked = check_parameters(TIES, {"density": density})["density"]
    first = [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]
    assert checked == [{"value": [first, {"gradient": [0.1, 0.9]}]}]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"density": [[{"filter": "mlp", "value": 2}], 0.4]}, r"density \(expert 1\)@mlp = 2"),
        ({"density": [0.1, {"gradient": [0.1, 2]}]}, r"density \(expert 2\) = 2"),
        ({"weights": [[{"filter": "mlp"}], 0.4]}, r"weights \(expert 1\): .* no item with a value"),
        ({"lambda": [{"layers": [3, 1], "value": 1}]}, "the layers .* are no range"),
        ({"lambda": [{"layers": [0, True], "value": 1}]}, "are no range"),
        ({"lambda": [{"layers": "all", "value": 1}]}, "are no range"),
        ({"lambda": [{"stack": "encoder", "value": 1}]}, "the stack 'encoder' tells no layers"),
        ({"lambda": [{"layers": [0, 1], "value": 1}] * 2}, "lambda@layers 0 to 1 is given twice"),
        ({"scope": {"gradient": ["tensor", "modl"]}}, "scope = 'modl'"),
    ],
)
def test_wrong_values_are_named_by_their_item(params: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        check_parameters(TIES, params)
    assert caught.value.remedy


def test_a_filter_of_one_expert_that_takes_nothing_is_a_fault() -> None:
    base, expert = blocks(0), blocks(1)
    weights = [[{"filter": "mpl", "value": 0.5}]]
    with pytest.raises(StructureError, match=r"'mpl' of weights \(expert 1\) fits no tensor"):
        magmerge.plan(base=base, experts=[expert], params={"weights": weights})
    layers = [{"filter": "lm_head", "layers": [0, 2], "value": 1}]
    with pytest.raises(StructureError, match="lambda@lm_head in layers 0 to 2 fits no tensor"):
        magmerge.plan(base=base, experts=[expert], params={"lambda": layers})


def test_points_that_are_no_numbers_are_steps_and_whole_numbers_stay_whole() -> None:
    points = {"gradient": ["tensor", "model", "auto"]}
    assert [settled(points, depth) for depth in (0, 0.49, 0.5, 0.99, 1)] == [
        *("tensor", "tensor", "model", "model", "auto")
    ]
    assert [settled({"gradient": [True, False]}, depth) for depth in (0, 0.9, 1)] == [
        *(True, True, False)
    ]
    assert settled({"gradient": [1, 4]}, 0.5) == 2
    base, experts = blocks(0), [blocks(1), blocks(2)]
    given = {"base": base, "experts": experts, "method": "ties"}
    params = {"lambda": 1.0, "density": 1.0, "scope": "tensor"}
    runs = [
        magmerge.merge(**given, params={**params, "normalize": own}).state_dict()
        for own in ([True, False], True, False)
    ]
    for name in base:
        last = "layers.5." in name
        assert torch.equal(runs[0][name], runs[2 if last else 1][name]), name


@pytest.mark.parametrize("target", [{"gradient": ["ellipsoid", "sphere"]}, ["ellipsoid"]])
def test_a_calibrators_parameters_take_no_points(target: Any) -> None:
    with pytest.raises(ParameterError, match="target") as caught:
        check_calibrations({"method": "wsc", "params": {"target": target}})
    assert caught.value.remedy


def test_a_mapping_of_points_is_as_good_as_a_list() -> None:
    told = check_parameters(TIES, {"lambda": {"gradient": [0.0, 1.0]}})["lambda"]
    assert told == check_parameters(TIES, {"lambda": [0, 1]})["lambda"]


def test_the_plan_and_the_report_tell_layers_and_experts(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    files = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for seed, file in enumerate(files):
        save_file(blocks(seed), file)
    told = (
        *("--base", files[0], "--expert", files[1], "--expert", files[2]),
        *("--set", "lambda=[{layers: [0, 2], value: [0, 1]}, {value: 0.5}]"),
        *("--set", "weights=[[{filter: mlp, value: 0.3}, {value: 0.5}], 0.4]"),
    )
    shown = magmerge_cli("plan", *told)
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "lambda: 0 to 1 for layers 0 to 2 (5 tensors), 0.5 for all others (9 tensors)" in text
    assert "weights: [0.3 for mlp, 0.5 for all others; 0.4] for all (14 tensors)" in text
    out = tmp_path / "out.safetensors"
    assert magmerge_cli("merge", *told, out).code == 0
    assert magmerge_cli("report", out).code == 0
    page = (tmp_path / "out.report.html").read_text(encoding="utf-8")
    assert "0 to 1 for layers 0 to 2" in page
    assert "weights [0.3 for mlp, 0.5 for all others; 0.4] for all" in page


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text("ab/*(", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["filter", "value", "layers", "stack", "gradient", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=400)
@given(value=VALUES, parameter=st.sampled_from(TIES.parameters))
def test_fuzz_any_value_is_read_or_refused_and_what_is_read_stays(
    value: Any, parameter: Any
) -> None:
    try:
        read = check_parameters(TIES, {parameter.name: value})[parameter.name]
    except MagmergeError as error:
        assert error.remedy
        return
    assert check_parameters(TIES, {parameter.name: read})[parameter.name] == read
    recipe = Recipe(experts={"a": "x"}, method="ties", params={parameter.name: read})
    assert Recipe.from_yaml(recipe.to_yaml()).params == recipe.params
    try:
        magmerge.plan(base=blocks(0), experts=[blocks(1)], method="ties", params=recipe.params)
    except MagmergeError as error:
        assert str(error)
