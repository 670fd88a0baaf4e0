"""Documents of mergekit's, right and wrong ones, for hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError
from magmerge.core.mergekit_dialect.method_table import KNOWN, METHODS
from magmerge.core.recipe import Recipe

MODELS = ("m/base", "m/a", "m/b", "org/c@main", "m/a+m/lora", "stage")
numbers = st.one_of(
    st.floats(0, 1, width=16), st.integers(-1, 2), st.booleans(), st.sampled_from(["1e-5", "x", ""])
)
points = st.lists(numbers, max_size=4)
filters = st.sampled_from(["mlp", "self_attn", "*", "", "model.*", "/q_proj$/", None, 3])
item = st.fixed_dictionaries({"value": st.one_of(numbers, points)}, optional={"filter": filters})
settings = st.dictionaries(
    st.sampled_from(sorted(KNOWN)),
    st.one_of(numbers, points, item, st.lists(item, max_size=3)),
    max_size=4,
)
models = st.sampled_from(MODELS)
ranges = st.tuples(st.integers(-1, 3), st.integers(0, 4)).map(list)
own = {"parameters": settings}
model = st.fixed_dictionaries({"model": models}, optional=own)
source = st.fixed_dictionaries({"model": models, "layer_range": ranges}, optional=own)
slice_ = st.fixed_dictionaries(
    {"sources": st.lists(source, min_size=1, max_size=3)},
    optional={"parameters": settings, "base_model": models},
)
inputs = {
    "models": st.lists(model, max_size=4),
    "slices": st.lists(slice_, max_size=3),
}
module = st.one_of(
    *(st.fixed_dictionaries({key: value}, optional=own) for key, value in inputs.items())
)
names = st.sampled_from(["text_decoder", "vision_tower", "multi_modal_projector", "encoder"])
inputs["modules"] = st.dictionaries(names, module, max_size=3)
leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


def _several(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


junk = st.recursive(leaf, _several, max_leaves=8)
more = {
    "base_model": st.one_of(models, junk),
    "parameters": st.one_of(settings, junk),
    "dtype": st.sampled_from(["bfloat16", "float16", "int64", "torch.float32"]),
    "out_dtype": st.sampled_from(["bfloat16", "float8"]),
    "tokenizer_source": st.one_of(models, st.sampled_from(["union", "base"])),
    "tokenizer": st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "source": st.one_of(models, st.sampled_from(["union", "base"])),
                "pad_to_multiple_of": st.integers(0, 8),
                "tokens": st.dictionaries(
                    st.text(max_size=3),
                    st.fixed_dictionaries(
                        {},
                        optional={
                            "source": st.one_of(
                                models,
                                st.just({"kind": "zero"}),
                                st.just({"kind": "model_token", "model": "m/a", "token_id": 1}),
                                junk,
                            ),
                            "force": st.booleans(),
                        },
                    ),
                    max_size=2,
                ),
            },
        ),
        junk,
    ),
    "chat_template": st.sampled_from(["auto", "chatml"]),
    "seed": st.integers(0, 3),
    "calibrate": st.sampled_from(["wsc", ["wsc"]]),
    "junk": junk,
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """One document, of which about half mean something."""
    method = draw(st.sampled_from([*METHODS, "nonsense"]))
    key = draw(st.sampled_from(sorted(inputs)))
    keys = draw(st.lists(st.sampled_from(sorted(more)), max_size=4, unique=True))
    document = {"merge_method": method, key: draw(inputs[key])}
    return {**document, **{key: draw(more[key]) for key in keys}}


def recipe_of(text: str | dict[str, Any], rules: str = "better") -> Recipe:
    """The only recipe of a document."""
    content = text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False)
    (recipe,) = Recipe.all_from_yaml(content, "r.yml", rules)
    return recipe


def rules_of(recipe: Recipe) -> set[str]:
    """The rules that its notes name."""
    return {note.partition("rule ")[2].partition(":")[0] for note in recipe.notes}


def faults_of(text: str) -> str:
    """What is told of a document that is refused."""
    with pytest.raises(MagmergeError) as caught:
        Recipe.all_from_yaml(text, "r.yml")
    return str(caught.value)


def two(method: str, **more: Any) -> dict[str, Any]:
    """A document that merges data/a and data/b on data/base."""
    models = [
        {"model": "data/a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "data/b", "parameters": {"weight": 0.3, "density": 0.25}},
    ]
    return {"models": models, "merge_method": method, "base_model": "data/base", **more}
