"""mergekit's recipes as recipes: what each word becomes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.mergekit_dialect.documents import recipe_of, rules_of, two

TASK_VECTORS = {
    "task_arithmetic": ("task_arithmetic", {"normalize": False, "lambda": 1.0}),
    "ties": ("ties", {"density": [0.5, 0.25], "normalize": True, "scope": "tensor"}),
    "dare_ties": ("dare_ties", {"p": [0.5, 0.75], "normalize": False, "rescale": "inverse"}),
    "dare_linear": ("dare", {"p": [0.5, 0.75], "normalize": False, "rescale": "inverse"}),
    "della": ("della", {"density": [0.5, 0.25], "epsilon": 0.15, "normalize": True}),
    "della_linear": ("della_linear", {"density": [0.5, 0.25], "normalize": False}),
    "breadcrumbs": ("breadcrumbs", {"gamma": 0.01, "normalize": False, "rescale": "none"}),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"gamma": 0.01, "normalize": False, "lambda": 1.0}),
}


@pytest.mark.parametrize("method", TASK_VECTORS)
def test_task_vectors_have_mergekits_defaults(method: str) -> None:
    recipe = recipe_of(two(method))
    name, params = TASK_VECTORS[method]
    assert (recipe.base, recipe.experts) == ("data/base", {"a": "data/a", "b": "data/b"})
    assert recipe.method == name
    assert recipe.params["weights"] == [0.5, 0.3]
    assert recipe.params["lambda"] == 1.0
    assert {key: recipe.params[key] for key in params} == params


def test_ties_without_a_density_keeps_everything() -> None:
    document = {"models": [{"model": "a"}, {"model": "b"}], "merge_method": "ties"}
    recipe = recipe_of({**document, "base_model": "c", "parameters": {"weight": 1}})
    assert recipe.params["density"] == 1.0
    assert not rules_of(recipe)


def test_as_mergekit_takes_its_own_choices() -> None:
    ties = recipe_of(two("ties"), "mergekit")
    assert ties.method == "breadcrumbs_ties"
    assert (ties.params["gamma"], ties.params["vote"]) == (0.0, "weighted")
    assert recipe_of(two("dare_ties"), "mergekit").params["rescale"] == "l1"
    assert recipe_of(two("sce"), "mergekit").params["energy_floor"] == 1e-6
    assert rules_of(recipe_of(two("ties"))) == {"ties-count", "vote"}
    assert not rules_of(ties)


def test_rescaled_ties_is_scaled_to_the_sum_of_magnitudes() -> None:
    recipe = recipe_of(two("ties", parameters={"rescale": True}))
    assert (recipe.method, recipe.params["rescale"]) == ("breadcrumbs_ties", "l1")


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_listed_base_is_a_model_like_the_others_and_comes_first(method: str) -> None:
    document = {**two(method), "base_model": "data/b"}
    recipe = recipe_of(document)
    assert recipe.base is None
    assert list(recipe.experts.items()) == [("b", "data/b"), ("a", "data/a")]
    if method == "linear":
        assert recipe.params == {"weights": [0.3, 0.5], "normalize": True}


def test_an_unlisted_base_is_merged_as_mergekit_does_or_gives_config_and_tokenizer() -> None:
    recipe = recipe_of(two("karcher"))
    assert list(recipe.experts) == ["a", "b"]
    assert getattr(recipe.output, "donor", None) == "data/base"
    assert "unlisted-base" in rules_of(recipe)
    counted = recipe_of(two("karcher"), "mergekit")
    assert counted.experts == {"base-model": "data/base", "a": "data/a", "b": "data/b"}


def test_slerp_goes_from_the_base_to_the_other() -> None:
    models = [{"model": "x/b"}, {"model": "x/a"}]
    document = {"models": models, "merge_method": "slerp", "base_model": "x/a"}
    recipe = recipe_of({**document, "parameters": {"t": 0.25}})
    assert (list(recipe.experts), recipe.params) == (["a", "b"], {"t": 0.25})
    ranged = [{"model": "x/b", "layer_range": [0, 2]}, {"model": "x/a", "layer_range": [0, 2]}]
    slices = [{"sources": ranged}, {"sources": ranged, "base_model": "x/b"}]
    document = {"slices": slices, "merge_method": "slerp", "base_model": "x/a"}
    turned = recipe_of({**document, "parameters": {"t": [0.25, 0.5]}})
    assert turned.params["t"][1] == {"value": {"gradient": [0.75, 0.5]}, "layers": [2, 4]}


LEVELS = """
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: [0.1, 0.3]}]}}
      - {model: b, layer_range: [2, 4]}
    parameters: {weight: [{filter: mlp, value: 9}, {filter: attn, value: 0.5}]}
  - sources:
      - {model: b, layer_range: [0, 3]}
merge_method: linear
parameters: {weight: 2}
"""


def test_levels_fall_through_from_source_to_slice_to_top() -> None:
    recipe = recipe_of(LEVELS)
    assert [slice_.layers for slice_ in recipe.slices] == [
        {"a": (0, 2), "b": (2, 4)},
        {"b": (0, 3)},
    ]
    one, other = recipe.params["weights"]
    assert one == [
        {"filter": "mlp", "value": {"gradient": [0.1, 0.3]}, "layers": [0, 2]},
        {"filter": "attn", "value": 0.5, "layers": [0, 2]},
        {"value": 2.0, "layers": [0, 2]},
        {"value": 2.0},
    ]
    assert other == [
        {"filter": "mlp", "value": 9.0, "layers": [0, 2]},
        {"filter": "attn", "value": 0.5, "layers": [0, 2]},
        {"value": 2.0, "layers": [0, 2]},
        {"value": 2.0, "layers": [2, 5]},
        {"value": 2.0},
    ]


def test_a_last_slice_of_more_models_is_told() -> None:
    one = {"sources": [{"model": "a", "layer_range": [0, 2]}]}
    two_ = {"sources": [{"model": m, "layer_range": [2, 4]} for m in "ab"]}
    document = {"merge_method": "linear", "parameters": {"weight": 1}, "slices": [one, two_]}
    assert rules_of(recipe_of(document)) == {"last-slice"}
    assert not rules_of(recipe_of({**document, "slices": [two_, one]}))


def test_passthrough_takes_the_scale_of_each_slices_model() -> None:
    sources = [
        {"model": m, "layer_range": r, "parameters": {"scale": s}}
        for m, r, s in (("a", [0, 3], 1), ("b", [1, 4], 0.5))
    ]
    slices = [{"sources": [source]} for source in sources]
    recipe = recipe_of({"slices": slices, "merge_method": "passthrough", "dtype": "float16"})
    assert recipe.params["scale"][:2] == [
        {"value": 1.0, "layers": [0, 3]},
        {"value": 0.5, "layers": [3, 6]},
    ]
    assert recipe.output.dtype == "F16"


def test_a_model_that_merges_with_itself_has_two_names() -> None:
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "a", "layer_range": [2, 4]}]
    document = {"slices": [{"sources": sources}], "merge_method": "linear"}
    recipe = recipe_of({**document, "parameters": {"weight": 1}})
    assert recipe.experts == {"a": "a", "a-2": "a"}
    assert recipe.slices[0].layers == {"a": (0, 2), "a-2": (2, 4)}


def test_modules_of_whole_models_become_filters_and_those_alike_nothing() -> None:
    def modules(t: Any) -> dict[str, Any]:
        models = [{"model": "a"}, {"model": "b"}]
        return {
            "text_decoder": {"models": models, "parameters": {"t": 0.5}},
            "vision_tower": {"models": models, "parameters": {"t": t}},
            "multi_modal_projector": {"models": models, "parameters": {"t": 0.5}},
        }

    document = {"merge_method": "slerp", "base_model": "a"}
    assert recipe_of({**document, "modules": modules(0.5)}).params == {"t": 0.5}
    recipe = recipe_of({**document, "modules": modules(0.1)})
    assert not recipe.slices
    assert recipe.params["t"] == [{"filter": "vis", "value": 0.1}, {"value": 0.5}]
    both = recipe_of({**document, "modules": modules([{"filter": "mlp.fc", "value": 1}])})
    assert both.params["t"][0] == {"filter": r"/vis.*mlp\.fc/", "value": 1.0}


def test_modules_of_slices_become_slices_of_stacks() -> None:
    def part(*ranges: tuple[int, int]) -> dict[str, Any]:
        models = [{"model": m, "layer_range": list(r)} for m, r in zip("ab", ranges, strict=True)]
        return {"slices": [{"sources": models}]}

    modules = {"decoder": part((0, 2), (1, 3)), "encoder": {"models": [{"model": "b"}]}}
    document = {"merge_method": "linear", "modules": modules, "parameters": {"weight": 1}}
    slices = recipe_of(document).slices
    assert [(s.stack, s.layers) for s in slices] == [
        ("decoder", {"a": (0, 2), "b": (1, 3)}),
        ("encoder", {"b": None}),
    ]


def test_words_of_tokens_name_experts() -> None:
    tokenizer = {
        "source": "data/b",
        "tokens": {
            "<x>": {"source": "data/a", "force": True},
            "<y>": {"source": {"kind": "model_token", "model": "data/base", "token": 7}},
            "<z>": {"source": {"kind": "zero"}},
            "<w>": {},
        },
        "pad_to_multiple_of": 64,
    }
    recipe = recipe_of(two("ties", tokenizer=tokenizer, chat_template="auto"))
    assert (recipe.tokenizer, recipe.pad_to_multiple_of, recipe.chat_template) == ("b", 64, "auto")
    assert {text: token.source for text, token in recipe.tokens.items()} == {
        "<x>": "a",
        "<y>": {"kind": "model_token", "model": "base", "token": "7"},
        "<z>": {"kind": "zero"},
    }
    assert recipe.tokens["<x>"].force
    assert {"tokens", "padding"} <= rules_of(recipe)


def test_own_keys_stand_beside_mergekits() -> None:
    own = {
        "calibrate": "fsc",
        "samples": {"data": {"data/a": "a.txt", "b": "b.txt"}, "samples": 3},
        "seed": 7,
        "rename": {"data/a": {"x": "y"}},
        "output": {"shard_size": "1GB"},
        "out_dtype": "bfloat16",
        "dtype": "float32",
    }
    recipe = recipe_of(two("ties", **own))
    assert recipe.calibrate[0].method == "fsc"
    assert recipe.samples is not None
    assert recipe.samples.data == {"a": "a.txt", "b": "b.txt"}
    assert (recipe.seed, recipe.rename, recipe.output.dtype) == (7, {"a": {"x": "y"}}, "BF16")
