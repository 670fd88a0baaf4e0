"""Parameters that vary by layer: as items, among a model's names, in a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import magmerge
from magmerge.cli.settings import parse_settings
from magmerge.core import registry
from magmerge.core.errors import MagmergeError, ParameterError, StructureError
from magmerge.core.filters import Filters, Item
from magmerge.core.recipe import Recipe
from magmerge.core.validation import check_calibrations, check_parameters
from tests.conftest import State

TIES = registry.methods.get("ties")
VAE_OFF = [{"filter": "vae", "value": 0}, {"value": 0.3}]


def test_items_are_kept_with_the_default_for_the_rest() -> None:
    values = check_parameters(TIES, {"lambda": [{"filter": "vae", "value": 0}], "density": 0.5})
    assert values["lambda"] == [{"filter": "vae", "value": 0.0}, {"value": 1.0}]
    assert values["density"] == 0.5
    assert check_parameters(TIES, {"weights": [{"filter": "a", "value": [1, 2]}]})["weights"] == [
        {"filter": "a", "value": [1.0, 2.0]},
        {"value": None},
    ]


@pytest.mark.parametrize("items", [[{"value": 0.3}], [{"filter": "*", "value": 0.3}]])
def test_one_item_for_all_is_the_plain_value(items: list) -> None:
    plain, listed = (
        Recipe(experts={}, method="ties", params=check_parameters(TIES, {"lambda": given}))
        for given in (0.3, items)
    )
    assert listed == plain
    assert listed.digest == plain.digest


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"filter": "vae", "value": "x"}], "lambda@vae = 'x' for ties"),
        ([{"filter": "vae", "value": float("nan")}, {"value": 1}], "lambda@vae"),
        ([{"filter": "vae"}], "no item with a value"),
        ([{"filter": "vae", "value": 1}, 0.3], "0.3 is no item"),
        ([{"filtre": "vae", "value": 1}], "an item with 'filtre'"),
        ([{"filter": 3, "value": 1}], "the filter 3 is no name"),
        ([{"filter": " ", "value": 1}], "is no name"),
        ([{"value": 1}, {"filter": "vae", "value": 1}], "comes before others"),
        ([{"filter": "a", "value": 1}, {"filter": "a", "value": 2}], "lambda@a is given twice"),
        ([{"filter": "*", "value": 1}, {"value": 2}], "comes before others"),
    ],
)
def test_wrong_items_are_named_with_the_remedy(items: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        check_parameters(TIES, {"lambda": items})
    assert caught.value.remedy


def test_a_calibrators_parameters_hold_for_all_layers() -> None:
    params = {"target": [{"filter": "vae", "value": "sphere"}]}
    with pytest.raises(ParameterError, match="target of wsc cannot vary") as caught:
        check_calibrations({"method": "wsc", "params": params})
    assert "--skip" in caught.value.remedy
    with pytest.raises(ParameterError, match="cannot vary"):
        check_calibrations({"method": "dsc", "params": {"wsc.target": params["target"]}})


def test_the_recipe_keeps_the_items_and_their_order() -> None:
    params = check_parameters(TIES, {"lambda": VAE_OFF})
    recipe = Recipe(experts={"a": "x"}, method="ties", params=params)
    back = Recipe.from_yaml(recipe.to_yaml())
    assert back == recipe
    assert back.digest == recipe.digest
    turned = check_parameters(
        TIES, {"lambda": [{"filter": "vae", "value": 0.3}, {"filter": "a", "value": 0}]}
    )
    assert recipe.model_copy(update={"params": turned}).digest != recipe.digest


def test_the_command_line_puts_the_plain_value_last() -> None:
    params, _ = parse_settings(
        ["lambda=0.3", "lambda@vae=0", "ties.lambda@layers.0.=1e-3", "density=0.5"], [], "ties"
    )
    assert params == {
        "lambda": [
            {"filter": "vae", "value": 0},
            {"filter": "layers.0.", "value": 0.001},
            {"value": 0.3},
        ],
        "density": 0.5,
    }
    for wrong in ("lambda@=1", "@vae=1", "lambda@vae"):
        with pytest.raises(ParameterError, match=f"--set {wrong}"):
            parse_settings([wrong], [], "ties")


def test_a_filter_is_a_part_of_a_name_a_pattern_or_a_component() -> None:
    bare = Filters(["transformer.h.0.weight", "transformer.h.1.bias", "vae"])
    assert bare.takes("transformer", "transformer.h.1.bias")
    assert bare.takes("h.0", "transformer.h.0.weight")
    assert bare.takes("*.bias", "transformer.h.1.bias")
    assert not bare.takes("h.?", "transformer.h.1.bias")
    unet, text = "model.diffusion_model.input_blocks.0.weight", "cond_stage_model.transformer.x"
    single = Filters([unet, text, "first_stage_model.unet", "alphas_cumprod"])
    assert single.takes("unet", unet)
    assert not single.takes("unet", "first_stage_model.unet")
    assert single.takes("vae", "first_stage_model.unet")
    assert not single.takes("transformer", text)
    assert single.takes("*transformer*", text)
    items = [Item("vae", 0), Item("first_stage", 1), Item(None, 2)]
    assert [single.item_for(items, name).value for name in single.names] == [2, 2, 0, 2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("atn", "the filter 'atn' of lambda fits no tensor: did you mean attn"),
        ("vae", "the filter 'vae' of lambda fits no tensor: it is in no name"),
        ("layers.0.mlp", "the filter 'layers.0.mlp' of lambda is never used"),
    ],
)
def test_a_filter_that_takes_nothing_is_a_fault(
    base: State, experts: list[State], wanted: str, message: str
) -> None:
    items = [{"filter": "mlp", "value": 0.1}, {"filter": wanted, "value": 0.2}]
    with pytest.raises(StructureError, match=message) as caught:
        magmerge.plan(base=base, experts=experts, params={"lambda": items})
    assert "`magmerge plan` lists the names" in caught.value.remedy


def test_tied_tensors_have_one_value() -> None:
    shared, other = torch.zeros(3, 2), torch.ones(3, 2)
    models = {"base": {"a": shared, "b": shared}, "experts": [{"a": other, "b": other}]}
    with pytest.raises(StructureError, match="lambda varies between b and a, which share"):
        magmerge.plan(**models, params={"lambda": [{"filter": "b", "value": 0.1}]})


def test_weights_are_counted_in_every_item(base: State, experts: list[State]) -> None:
    weights = [{"filter": "mlp", "value": [1, 0]}, {"value": [1, 1, 1]}]
    with pytest.raises(StructureError, match="2 weights are given for 3 experts"):
        magmerge.plan(base=base, experts=experts, method="average", params={"weights": weights})


def test_values_that_do_not_go_together_are_found_where_they_meet(
    base: State, experts: list[State]
) -> None:
    weights = [{"filter": "mlp", "value": [1.0, -1.0, 0.0]}, {"value": [1.0, 1.0, 1.0]}]
    given = {"base": base, "experts": experts, "method": "average"}
    with pytest.raises(ParameterError, match="add up to zero"):
        magmerge.plan(**given, params={"weights": weights})
    normalize = [{"filter": "layers.0", "value": False}]
    magmerge.plan(**given, params={"weights": weights, "normalize": normalize})


@pytest.mark.parametrize("name", ["density", "scope"])
def test_what_decides_about_the_whole_model_cannot_vary(
    base: State, experts: list[State], name: str
) -> None:
    value = {"density": 0.5, "scope": "tensor"}[name]
    params = {name: [{"filter": "mlp", "value": value}]}
    given = {"base": base, "experts": experts, "method": "ties"}
    with pytest.raises(ParameterError, match=f"{name} of ties cannot vary by layer") as caught:
        magmerge.plan(**given, params=params)
    if name == "density":
        assert "--set scope=tensor" in caught.value.remedy
        magmerge.plan(**given, params={**params, "scope": "tensor"})
    magmerge.plan(**given, params={"lambda": [{"filter": "mlp", "value": 0.5}]})


def test_the_plan_tells_each_value_and_who_takes_it(base: State, experts: list[State]) -> None:
    items = [{"filter": "mlp", "value": 0}, {"filter": "layers.0", "value": 0.5}]
    plan = magmerge.plan(
        base=base, experts=experts, method="tsv_m", ignore="lm_head.*", params={"lambda": items}
    )
    told = [(one.filter, one.value, one.tensors) for one in plan.choices]
    assert told == [("mlp", 0.0, 1), ("layers.0", 0.5, 3), (None, 1.0, 1)]
    params = {step.spec.name: dict(step.params) for step in plan.steps}
    assert params["layers.0.mlp.weight"] == {"lambda": 0.0}
    # Lambda scales the plain mean too, and nothing that is carried over.
    assert params["layers.0.norm.weight"] == {"lambda": 0.5}
    assert params["lm_head.weight"] == {}


def test_a_factor_of_zero_keeps_the_base_to_its_last_bit(
    base: State, experts: list[State], tmp_path: Path
) -> None:
    params = {"lambda": [{"filter": "mlp", "value": 0}]}
    result = magmerge.merge(
        base=base, experts=experts, params=params, out=tmp_path / "o.safetensors"
    )
    merged = magmerge.open_checkpoint(tmp_path / "o.safetensors")
    assert torch.equal(merged.read("layers.0.mlp.weight"), base["layers.0.mlp.weight"])
    assert not torch.equal(merged.read("layers.0.attn.weight"), base["layers.0.attn.weight"])
    assert result.recipe.params["lambda"][0] == {"filter": "mlp", "value": 0.0}


@settings(deadline=None, max_examples=200)
@given(
    items=st.lists(
        st.none()
        | st.floats()
        | st.dictionaries(
            st.sampled_from(["filter", "value", "x"]),
            st.none() | st.floats() | st.text(max_size=3) | st.lists(st.floats(), max_size=2),
        ),
        max_size=4,
    ),
    parameter=st.sampled_from([p.name for p in TIES.parameters]),
)
def test_fuzz_any_items_are_read_or_refused(items: list, parameter: str) -> None:
    try:
        found = check_parameters(TIES, {parameter: items})[parameter]
    except MagmergeError as error:
        assert str(error)
        return
    assert check_parameters(TIES, {parameter: found})[parameter] == found


def stack(seed: int) -> State:
    torch.manual_seed(seed)
    names = [f"model.layers.{number}.w.weight" for number in range(5)]
    return {name: torch.randn(4, 4) for name in ("embed.weight", *names)}


DEPTHS = {"embed.weight": 0.0} | {f"model.layers.{n}.w.weight": n / 4 for n in range(5)}


@given(points=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=7))
@settings(max_examples=20, deadline=None)
def test_a_list_of_points_runs_through_the_blocks_of_a_model(points: list[float]) -> None:
    import numpy

    base, expert = stack(0), stack(1)
    merged = magmerge.merge(base=base, experts=[expert], params={"lambda": points}).state_dict()
    for name, tensor in merged.items():
        places = numpy.linspace(0, 1, len(points)) if len(points) > 1 else [0.0]
        value = numpy.interp(DEPTHS[name], places, points)
        expected = base[name].double() + value * (expert[name] - base[name]).double()
        assert torch.allclose(tensor.double(), expected, atol=1e-5), name


def test_weights_of_each_expert_may_run_through_a_model_and_the_recipe_is_run_again() -> None:
    base, experts = stack(0), [stack(1), stack(2)]
    result = magmerge.merge(
        base=base,
        experts=experts,
        params={"lambda": 1.0, "weights": [{"value": [[0, 1], 0.5]}]},
    )
    merged = result.state_dict()
    for name, tensor in merged.items():
        deltas = [(expert[name] - base[name]).double() for expert in experts]
        expected = base[name].double() + DEPTHS[name] * deltas[0] + 0.5 * deltas[1]
        assert torch.allclose(tensor.double(), expected, atol=1e-5), name
    recipe = Recipe.from_yaml(result.recipe.to_yaml())
    models = {"base": base, "expert-1": experts[0], "expert-2": experts[1]}
    again = magmerge.run(recipe, models=models).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())


def test_points_on_the_command_line_and_points_that_are_none() -> None:
    values, _ = parse_settings(["lambda=[0, 0.5, 1]"], [], "ties")
    assert check_parameters(TIES, values)["lambda"] == [{"value": {"gradient": [0.0, 0.5, 1.0]}}]
    for params in (
        {"lambda": [0, "x"]},
        {"lambda": []},
        {"lambda": {"gradient": []}},
        {"density": [0.1, 2]},
        {"weights": [[0, "a"], 1]},
    ):
        with pytest.raises(ParameterError, match=next(iter(params))):
            check_parameters(TIES, params)


def test_points_of_what_decides_about_a_whole_model_are_refused_with_a_remedy_that_helps() -> None:
    base, expert = stack(0), stack(1)
    call = {"base": base, "experts": [expert, stack(2)], "method": "ties"}
    points = {"gradient": [0.1, 0.9]}
    with pytest.raises(ParameterError, match="scope=tensor"):
        magmerge.merge(**call, params={"density": points})
    magmerge.merge(**call, params={"density": points, "scope": "tensor"})
