"""Documents of mergekit's, several of them, and whatever else is written into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.mergekit_dialect.method_table import METHODS
from magmerge.core.mergekit_dialect.rule_table import RULES
from magmerge.core.recipe import Recipe
from magmerge.engine.resolve import check_recipe
from tests.core.mergekit_dialect.documents import MODELS, documents, recipe_of, two
from tests.quick import examples

SEVERAL = """
merge_method: linear
models: [{model: first}, {model: second}]
parameters: {weight: 1}
---
name: second
merge_method: linear
models: [{model: first}, {model: c}]
parameters: {weight: 1}
---
name: first
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
"""


def test_a_result_is_no_donor_of_config_by_its_name() -> None:
    text = SEVERAL.replace(
        "merge_method: linear\n", "merge_method: linear\nbase_model: second\n", 1
    )
    recipes = Recipe.all_from_yaml(text.replace("model: second}", "model: c}"))
    assert getattr(recipes[-1].output, "donor", None) is None


def test_documents_are_put_in_the_order_of_work() -> None:
    recipes = Recipe.all_from_yaml(SEVERAL)
    assert [recipe.name for recipe in recipes] == ["first", "second", None]
    circle = SEVERAL.replace("model: a}", "model: second}")
    with pytest.raises(ParameterError, match="read each other's results"):
        Recipe.all_from_yaml(circle)


def test_a_filter_that_is_a_pattern_is_one_only_here() -> None:
    parameters = {"t": [{"filter": "*.q_proj.*", "value": 0.1}, {"value": 0.5}]}
    models = [{"model": "a"}, {"model": "b"}]
    document = {"models": models, "merge_method": "slerp", "base_model": "a"}
    document["parameters"] = parameters
    assert recipe_of(document).params["t"][0] == {"filter": "*.q_proj.*", "value": 0.1}
    assert recipe_of(document, "mergekit").params["t"] == 0.5


def test_parameters_without_effect_are_said() -> None:
    recipe = recipe_of(two("slerp", base_model="data/a", parameters={"t": 0.5, "int8_mask": True}))
    assert "slerp: density, int8_mask, weight" in recipe.notes[0]


IN_THE_WILD = r"""
base_model: C:\Users\me\base
merge_method: della_linear
dtype: bfloat16
modules:
  default:
    slices:
    - sources:
      - {layer_range: [0, 4], model: E:\models\one, parameters: {weight: [0.9, 0.2, 0.4]}}
      - {layer_range: [0, 4], model: C:\Users\me\base}
parameters: {normalize: 1.0, density: 0.5, epsilon: 4e-1, lambda: "1"}
tokenizer: {}
"""


def test_what_people_write_is_understood() -> None:
    recipe = recipe_of(IN_THE_WILD)
    assert recipe.experts == {"one": r"E:\models\one"}
    assert recipe.params["normalize"] is True
    assert (recipe.params["epsilon"], recipe.params["lambda"]) == (0.4, 1.0)
    assert recipe.tokenizer == "union"
    assert recipe.slices[0].layers == {"one": (0, 4), "base": (0, 4)}
    karcher = {"merge_method": "karcher", "models": [{"model": "a"}, {"model": "b"}]}
    recipe = recipe_of("parameters: {tol: 1e-10, max_iter: 1e3}\n" + yaml.safe_dump(karcher))
    assert recipe.params == {"tol": 1e-10, "max_iter": 1000}


@pytest.mark.parametrize("rules", ["better", "mergekit"])
@given(document=documents())
@settings(max_examples=examples(1500), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_document_is_a_recipe_that_reads_back_or_is_refused(
    document: dict[str, Any], rules: str
) -> None:
    text = yaml.safe_dump(document, sort_keys=False)
    try:
        recipes = Recipe.all_from_yaml(text, "r.yml", rules)
    except MagmergeError as error:
        assert error.remedy
        return
    for recipe in recipes:
        assert Recipe.from_yaml(recipe.to_yaml()).digest == recipe.digest


@given(several=st.lists(documents(), min_size=2, max_size=3))
@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_several_documents_are_recipes_in_an_order_or_are_refused(
    several: list[dict[str, Any]],
) -> None:
    named = [{"name": name, **document} for name, document in zip(MODELS, several, strict=False)]
    named += [{"experts": ["x", "y"], "method": "average"}]
    try:
        recipes = Recipe.all_from_yaml(yaml.safe_dump_all(named, sort_keys=False), "r.yml")
    except MagmergeError as error:
        assert error.remedy
        return
    assert len(recipes) == len(named)


def test_every_method_and_rule_of_the_tables_is_known_here() -> None:
    assert len(METHODS) == 20
    for rule in RULES.values():
        assert rule.better
        assert "  " not in rule.better
    for method in METHODS:
        plain = {"merge_method": method, "base_model": "b", "parameters": {"weight": 1, "t": 0.5}}
        least = max(1, METHODS[method].experts[0])
        models = [{"model": f"m{n}"} for n in range(least)]
        if METHODS[method].base == "other":
            plain["base_model"] = "m0"
        check_recipe(recipe_of({**plain, "models": models}))


RECIPES = sorted((Path(__file__).parents[3] / "benchmarks" / "mergekit").glob("*_recipes.yaml"))


@pytest.mark.parametrize("rules", ["better", "mergekit"])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_benchmark_are_read(file: Path, rules: str) -> None:
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert len(entries) > 20
    for entry in entries:
        for recipe in Recipe.all_from_yaml(entry["recipe"], entry["name"], rules):
            assert Recipe.from_yaml(recipe.to_yaml()).digest == recipe.digest
        assert set(entry.get("rules", ())) <= RULES.keys()
