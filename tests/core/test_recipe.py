from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core import registry
from magmerge.core.errors import MagmergeError, ParameterError, StructureError, UnknownNameError
from magmerge.core.recipe import Recipe
from magmerge.core.validation import check_calibrations, check_parameters, keywords
from magmerge.pipeline.recipe_files import read_recipes

TIES = registry.methods.get("ties")


def test_parameters_are_filled_with_defaults_and_bound_by_keyword() -> None:
    values = check_parameters(TIES, {"lambda": 0.5})
    assert values["density"] == 0.2
    assert keywords(TIES, values)["lambda_"] == 0.5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"densty": 0.2}, "did you mean density"),
        ({"density": 0}, "greater than 0"),
        ({"density": 1.5}, "less than or equal to 1"),
        ({"density": "much"}, "valid number"),
        ({"density": True}, "valid number"),
        ({"density": float("nan")}, "density"),
        ({"lambda": float("inf")}, "finite"),
        ({"scope": "galaxy"}, "'tensor' or 'model'"),
        ({"weights": [1, "a"]}, "valid number"),
        ({"thresholds": []}, "no parameter"),
    ],
)
def test_wrong_parameters_are_named_with_the_remedy(params: dict, message: str) -> None:
    with pytest.raises(MagmergeError, match=message) as caught:
        check_parameters(TIES, params)
    assert caught.value.remedy


def test_calibrations_in_all_their_forms() -> None:
    assert check_calibrations(None) == ()
    (one,) = check_calibrations("wsc")
    assert one.params == {"target": "ellipsoid", "granularity": "row"}
    both = check_calibrations(["wsc", {"method": "wsc", "params": {"target": "sphere"}}])
    assert [c.params["target"] for c in both] == ["ellipsoid", "sphere"]
    with pytest.raises(UnknownNameError, match="wsc"):
        check_calibrations("wcs")
    with pytest.raises(UnknownNameError, match="params"):
        check_calibrations({"method": "wsc", "parms": {}})


RECIPE = Recipe(
    base="b",
    experts={"a": "x", "c": "y"},
    method="ties",
    params={"density": 0.1},
    calibrate=check_calibrations("wsc"),
    sensitive=("l",),
)


def test_yaml_round_trip_keeps_the_recipe_and_its_digest() -> None:
    back = Recipe.from_yaml(RECIPE.to_yaml())
    assert back == RECIPE
    assert back.digest == RECIPE.digest
    assert back.digest != RECIPE.model_copy(update={"seed": 1}).digest


GOLDEN = """\
base: b
experts:
  a: x
  c: y
method: ties
params:
  density: 0.1
calibrate:
- method: wsc
  params:
    target: ellipsoid
    granularity: row
gate: 'on'
sensitive:
- l
skip: []
ignore: []
seed: 0
output:
  kind: model
  shard_size: 5000000000
"""


def test_golden_text_and_digest() -> None:
    assert RECIPE.to_yaml() == GOLDEN
    assert RECIPE.digest == "2703292f6c1583781052784da30f76bd6ec92cdc5886c55b6318be4432b5a87d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experts: {}\nmethd: ties", "did you mean method"),
        ("experts: {}\nseed: many", "seed"),
        ("[", "not YAML"),
        ("3", "no mapping from keys to values"),
        ("experts: {}\ngate: ajar", "gate"),
    ],
)
def test_wrong_recipes_are_one_clear_message(text: str, message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message):
        Recipe.from_yaml(text, source="my.yaml")


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60) | st.binary(max_size=40).map(lambda b: b.decode("latin1")))
def test_fuzz_any_text_is_a_recipe_or_refused(text: str) -> None:
    try:
        Recipe.from_yaml(text)
    except MagmergeError as error:
        assert str(error)


def test_a_recipe_as_people_write_it() -> None:
    text = """
base: B
experts: [models/one, models/two.safetensors, other/one]
method: average
calibrate: dsc
samples: {data: texts.jsonl}
output: {dtype: bfloat16, shard_size: 2GB}
"""
    recipe = Recipe.from_yaml(text)
    assert recipe.experts == {"one": "models/one", "two": "models/two.safetensors",
                              "one-2": "other/one"}  # fmt: skip
    assert [one.method for one in recipe.calibrate] == ["dsc"]
    assert set(recipe.samples.data) == set(recipe.experts)
    assert (recipe.output.kind, recipe.output.dtype) == ("model", "BF16")
    assert recipe.output.shard_size == 2_000_000_000
    adapter = Recipe.from_yaml("experts: [a, b]\nmethod: ties\noutput: {rank: auto}")
    assert adapter.output.kind == "adapter"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(adapter.to_yaml()) == adapter


@pytest.mark.parametrize(
    ("line", "problem", "remedy"),
    [
        ("dtype: bfloat16", "unknown key 'dtype'", "write it under output"),
        ("order: forward", "unknown key 'order'", "write it under samples"),
        ("metod: ties", "unknown key 'metod'", "did you mean method"),
        ("output: {dtyp: float16}", "unknown key 'output.dtyp'", "did you mean dtype"),
        ("output: {dtype: floaty}", "floaty", "did you mean float"),
        ("gate: maybe", "gate", "on or off"),
    ],
)
def test_a_recipes_mistakes_tell_where_a_key_belongs(line: str, problem: str, remedy: str) -> None:
    with pytest.raises(MagmergeError) as caught:
        Recipe.from_yaml(f"experts: [a, b]\n{line}", "my.yaml")
    assert problem in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_key_that_stands_twice_is_named_with_its_line() -> None:
    with pytest.raises(ParameterError, match="'seed' stands twice") as raised:
        Recipe.from_yaml("experts: [a, b]\nseed: 1\nmethod: ties\nseed: 2", "my.yaml")
    assert "line 4" in str(raised.value)


def test_names_of_experts_may_be_numbers() -> None:
    assert Recipe.from_yaml("experts: {1: a, 2: b}").experts == {"1": "a", "2": "b"}


def test_python_gets_the_same_errors_as_yaml() -> None:
    with pytest.raises(UnknownNameError, match="unknown key 'sed'"):
        Recipe(experts={"a": "a"}, sed=1)  # type: ignore[call-arg]
    with pytest.raises(ParameterError, match="gate"):
        Recipe(experts={"a": "a"}, gate="maybe")  # type: ignore[arg-type]


def test_a_file_in_another_encoding_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("experts: [a]", encoding="utf-16")
    with pytest.raises(ParameterError, match="no UTF-8 text"):
        read_recipes(file)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("experts: E1", "a list of paths, or names with paths"),
        ("experts: [a]\nignore: 3", "a name or a pattern, or a list of such"),
        ("experts: [a]\ncalibrate: 3", "a name, such as wsc, or a list of such"),
        ("experts: [a]\nparams: 3", "names with values"),
    ],
)
def test_a_wrong_form_is_told_the_right_one(line: str, remedy: str) -> None:
    with pytest.raises(ParameterError) as raised:
        Recipe.from_yaml(line)
    assert remedy in str(raised.value.remedy)


def test_one_pattern_needs_no_list() -> None:
    assert Recipe.from_yaml("experts: [a]\nignore: '*.bias'").ignore == ("*.bias",)


def test_merge_keys_of_yaml_are_no_doubles() -> None:
    text = (
        "experts: [a, b]\n"
        "calibrate: [{method: wsc, params: &q {<<: {target: sphere}, target: ellipsoid}}]\n"
        "params: {<<: *q}\nmethod: ties"
    )
    assert Recipe.from_yaml(text).params == {"target": "ellipsoid"}


def test_a_recipe_of_mergekits_and_a_choice_that_is_none_are_told_in_plain_words() -> None:
    with pytest.raises(
        StructureError, match=r"line 1: none of models, slices and modules is given"
    ):
        Recipe.from_yaml("slices: []\nmerge_method: slerp\n")
    with pytest.raises(
        ParameterError, match="no document of it is mergekit's, to be read as mergekit"
    ):
        Recipe.all_from_yaml("experts: [a, b]", rules="mergekit")
    with pytest.raises(ParameterError, match="recipe: weights: input should be 'ema'"):
        Recipe.model_validate({"weights": "emma"})


def test_a_number_that_is_another_field_s_default_stays() -> None:
    recipe = Recipe(experts={"a": "a"}, base="b", method="average", pad_to_multiple_of=10)
    assert Recipe.from_yaml(recipe.to_yaml()).pad_to_multiple_of == 10
    assert recipe.digest != recipe.model_copy(update={"pad_to_multiple_of": None}).digest
    bounded = recipe.model_copy(update={"bound": 5.0})
    assert Recipe.from_yaml(bounded.to_yaml()).bound == 5.0
    assert bounded.digest != recipe.digest
