"""Mistakes in mergekit's recipes: all told at once, with lines and remedies that help."""

from __future__ import annotations

import pytest
import yaml

from magmerge.core.errors import ParameterError, StructureError
from magmerge.core.recipe import Recipe
from tests.core.mergekit_dialect.documents import faults_of, recipe_of, two

WRONG = """models:
  - model: data/a
    parameters: {wieght: 1.0}
  - model: data/b
    layer_range: [0, 4]
merge_method: ties
base_modle: data/base
parameters:
  density: [0.5, much]
dtype: int64
"""


def test_all_faults_are_told_at_once_with_their_lines() -> None:
    text = faults_of(WRONG)
    for part in (
        "r.yml, line 3: unknown key 'wieght' in parameters\n  remedy: did you mean weight?",
        "line 5: unknown key 'layer_range' in an entry of models\n  remedy: models are merged",
        "line 7: unknown key 'base_modle' in the recipe\n  remedy: did you mean base_model?",
        "line 9: density: 'much' is not a number",
        "dtype: no floating-point dtype 'int64'",
        "line 1: ties has no base_model",
        "line 4: weight of data/b is missing\n  remedy: write parameters: {weight: 1.0}",
    ):
        assert part in text
    mended = (
        WRONG.replace("wieght", "weight")
        .replace("layer_range: [0, 4]", "parameters: {weight: 1.0}")
        .replace("base_modle", "base_model")
        .replace("much", "1")
        .replace("int64", "float32")
    )
    assert recipe_of(mended).params["density"] == [{"value": {"gradient": [0.5, 1.0]}}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("merge_method: tiess", "did you mean ties?"),
        ("models: [{model: a}]\nslices: []\nmerge_method: linear", "weight of a is missing"),
        ("merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: []}]", "are given"),
        ("merge_method: linear\nmodels: [a]", "an entry of models is no mapping"),
        ("merge_method: linear\nmodels: 3", "models is no list"),
        ("merge_method: linear\nweight: 1", "write it under parameters: {weight: ...}"),
        ("merge_method: slerp\nmodels: [{model: a}]\nbase_model: a", "slerp merges 2 models"),
        ("merge_method: linear\nx: &a [*a]", "not YAML"),
        ("merge_method: linear\n? [1]\n: 2", "not YAML"),
        ("merge_method: linear\nx: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_mistakes_are_told_in_plain_words(line: str, told: str) -> None:
    assert told in faults_of(line)


def test_aliases_that_unfold_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "unfolds to more values" in faults_of("\n".join(["merge_method: ties", *lines]))


def test_what_is_one_for_all_models_has_no_effect_in_one() -> None:
    document = two("ties")
    document["models"][0]["parameters"]["lambda"] = 0.5
    recipe = recipe_of(document)
    assert recipe.params["lambda"] == 1.0
    assert any("lambda of a single model" in note for note in recipe.notes)
    text = "models: [{model: a, parameters: {t: 0.5}}, {model: b}]\nmerge_method: slerp"
    told = faults_of(f"{text}\nbase_model: a")
    assert "t is missing\n  remedy: write beside merge_method parameters: {t: 0.5}" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("models: [{model: a, revision: v1}]", "write it with the model: PATH@REVISION"),
        ("parameters: {dtype: bfloat16}", "at the top of the recipe, beside merge_method: dtype"),
        ("models: [{model: a, density: 0.5}]", "write it under parameters: {density: ...}"),
        ("models: [{model: a, lambda: 0.5}]", "write it at the top, parameters: {lambda: ...}"),
        ("slices: [{merge_method: slerp}]", "write it at the top of the recipe"),
    ],
)
def test_keys_in_the_wrong_place_are_told_the_right_one(line: str, told: str) -> None:
    assert told in faults_of(f"merge_method: ties\n{line}")


def test_a_density_of_nothing_is_told_what_to_write() -> None:
    document = two("ties", parameters={"density": [1, 0.5, 0]})
    for entry in document["models"]:
        del entry["parameters"]["density"]
    told = faults_of(yaml.safe_dump(document))
    assert "a density of 0 keeps nothing\n  remedy: leave the model out, or give it weight" in told
    document["parameters"]["density"] = [1, 0.5, 0.001]
    assert recipe_of(document).params["density"][0]["value"]["gradient"][-1] == 0.001


def test_a_wrong_way_to_read_is_refused() -> None:
    with pytest.raises(ParameterError, match="not read as 'worse'"):
        Recipe.all_from_yaml(yaml.safe_dump(two("ties")), rules="worse")
    with pytest.raises(StructureError):
        recipe_of("merge_method: ties")
