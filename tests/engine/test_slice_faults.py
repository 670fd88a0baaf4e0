"""Slices that cannot be: told before any work, each with a remedy that leads to a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, StructureError
from magmerge.core.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
Slices = list[dict[str, Any]]


def model(seed: int, blocks: int = 4, width: int = 6, stack: str = "layers") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    names = [f"{stack}.{number}.mlp.weight" for number in range(blocks)]
    names = ["embed_tokens.weight", *names, "norm.weight", "lm_head.weight"]
    return {
        name: torch.randn((width, *([] if "norm" in name else [width])), generator=generator)
        for name in names
    }


MODELS = {"base": model(0), "a": model(1), "b": model(2)}


def merged(slices: Slices, models: Mapping[str, Any] = MODELS, **fields: Any) -> dict[str, Any]:
    """The merge of models in memory."""
    given: dict[str, Any] = {name: f"{name} in memory" for name in models}
    content: dict[str, Any] = {"method": "average", "slices": slices, **fields}
    if "base" in given:
        content["base"] = given.pop("base")
    recipe = Recipe.model_validate({**content, "experts": given})
    return magmerge.run(recipe, models=models).state_dict()


def fault(slices: Slices, **fields: Any) -> str:
    with pytest.raises(MagmergeError) as caught:
        merged(slices, **fields)
    return str(caught.value)


def layers(**ranges: Any) -> dict[str, Any]:
    return {"layers": ranges}


ALL = layers(base=[0, 4], a=[0, 4], b=[0, 4])
WRONG: list[tuple[Slices, dict[str, Any], str, str, Slices]] = [
    ([ALL, layers(a=[2, 6])], {}, "slice 2 takes blocks 2 to 6 of a, and layers of a has 4 blocks",
     "within [0, 4]", [ALL, layers(a=[2, 4])]),
    ([ALL, layers(a=[3, 1])], {}, "slice 2 takes blocks 3 to 1 of a, which are none",
     "[3, 4]", [ALL, layers(a=[3, 4])]),
    ([ALL, layers(a=[2, 2])], {}, "slice 2 takes blocks 2 to 2 of a, which are none",
     "[2, 4]", [ALL, layers(a=[2, 4])]),
    ([ALL, layers(a=[-1, 2])], {}, "slice 2 takes blocks -1 to 2 of a",
     "within [0, 4]", [ALL, layers(a=[0, 2])]),
    ([ALL, layers(a=[0, 2], b=[0, 3])], {}, "slice 2 takes unequal numbers of blocks: 2 of",
     "as many blocks", [ALL, layers(a=[0, 2], b=[1, 3])]),
    ([ALL, layers(aa=[0, 2])], {}, "slice 2 names 'aa'", "did you mean a", [ALL, layers(a=[0, 2])]),
    ([ALL, layers()], {}, "slice 2 has no layers", "name models", [ALL, layers(a=[0, 2])]),
    ([ALL, {**layers(a=[0, 2]), "stack": "layer.norm"}], {}, "slice 2: 'layer.norm' names no stack",
     "did you mean layers", [ALL, {**layers(a=[0, 2]), "stack": "layers"}]),
    ([ALL, {**layers(a=[0, 2]), "base": "b"}], {}, "the base of slice 2, 'b', has no layers in it",
     "among the layers", [ALL, {**layers(a=[0, 2], b=[0, 2]), "base": "b"}]),
    ([ALL, {**layers(a=[0, 2]), "base": "c"}], {}, "the base of slice 2, 'c'", "known: a, b, base",
     [ALL, layers(a=[0, 2])]),
    ([layers(base=[0, 4], a=[0, 4])], {}, "b has a part in no slice", "or drop it", [ALL]),
    ([ALL, layers(a=[0, 2])], {"method": "ties"}, "the base has no part in slice 2",
     "base: [0, 1 or more]", [ALL, layers(base=[0, 2], a=[0, 2])]),
    ([layers(a=[0, 4], b=[0, 4]), layers(a=[0, 2])], {"method": "slerp"},
     "slerp takes exactly 2 experts, and 1 has a part in slice 2: a", "slice 2",
     [layers(a=[0, 4], b=[0, 4]), layers(a=[0, 2], b=[2, 4])]),
    ([layers(a=[0, 4], b=[0, 4])], {"method": "passthrough"},
     "passthrough takes exactly 1 expert, and 2 have a part in slice 1: a, b", "exactly 1 expert",
     [layers(a=[0, 4]), layers(b=[0, 4])]),
    ([layers(base=[0, 2], a=[0, 2]), layers(base=[0, 2], b=[0, 2])],
     {"method": "average", "params": {"weights": [0.0, 1.0]}}, "slice 1: the weights add up to",
     "choose other weights", [layers(base=[0, 2], a=[0, 2], b=[0, 2])]),
]  # fmt: skip


@pytest.mark.parametrize(("slices", "fields", "text", "remedy", "right"), WRONG)
def test_what_is_wrong_with_a_slice_is_told_and_its_remedy_helps(
    slices: Slices, fields: dict[str, Any], text: str, remedy: str, right: Slices
) -> None:
    told = fault(slices, **fields)
    assert text in told
    assert remedy in told.partition("remedy:")[2]
    merged(right, **fields)


def test_all_faults_are_told_at_once() -> None:
    told = fault([layers(a=[0, 9]), layers(c=[0, 1]), layers(b=[1, 1])])
    assert all(f"slice {number}" in told for number in (1, 2, 3))
    assert told.startswith("3 faults")


def test_a_base_that_the_recipe_has_not() -> None:
    models = {name: MODELS[name] for name in ("a", "b")}
    told = fault([ALL], models=models)
    assert "slice 1 names 'base', and no model is called so" in told
    merged([layers(a=[0, 4], b=[0, 4])], models)
    merged([ALL])


def test_an_expert_that_is_called_base() -> None:
    recipe = {"experts": {"base": "x in memory"}, "slices": [layers(base=[0, 4])]}
    with pytest.raises(ParameterError, match="an expert is called base"):
        magmerge.run(Recipe.model_validate(recipe), models={"experts.base": MODELS["a"]})
    named = {"experts": {"other": "x in memory"}, "slices": [layers(other=[0, 4])]}
    magmerge.run(Recipe.model_validate(named), models={"other": MODELS["a"]})


def test_models_of_other_widths() -> None:
    wide = {**MODELS, "b": model(2, width=8)}
    told = fault([layers(a=[0, 2]), layers(b=[2, 4])], models={n: wide[n] for n in ("a", "b")})
    assert "slice 2: mlp.weight of layers.2 has shape [8, 8] in b, [6, 6] in a" in told
    assert "one size" in told


def test_stacks_of_other_names() -> None:
    strange = {**MODELS, "b": model(2, stack="blocks")}
    told = fault([ALL], models=strange)
    assert "slice 1: b has no blocks layers.N" in told


@pytest.mark.parametrize("merge", [[0, 2], None])
def test_the_same_blocks_twice_in_one_slice(merge: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(MODELS["a"], tmp_path / "a.safetensors")
    experts = dict.fromkeys(("one", "two"), str(tmp_path / "a.safetensors"))
    content = {"experts": experts, "method": "average"}
    slices = [layers(one=merge, two=merge)]
    with pytest.raises(StructureError, match=r"slice 1 takes the same blocks of .*one and as two"):
        magmerge.run(Recipe.model_validate({**content, "slices": slices}))
    other = [layers(one=[0, 2], two=[1, 3])]
    magmerge.run(Recipe.model_validate({**content, "slices": other}))


def test_blocks_that_are_not_there() -> None:
    models = {"a": {n: t for n, t in MODELS["a"].items() if ".1." not in n}}
    told = fault([layers(a=[0, 4])], models=models)
    assert "blocks 0 to 4 of a, which has no layers.1" in told
    merged([layers(a=[2, 4])], models)


def test_numbers_beyond_reason() -> None:
    models = {"a": {**MODELS["a"], "layers.999999.mlp.weight": torch.zeros(6, 6)}}
    told = fault([layers(a=None)], models=models)
    assert "which has no layers.4" in told
    merged([layers(a=[0, 4])], models)


def two_stacks(seed: int) -> dict[str, Any]:
    language, vision = model(seed), model(seed + 9, stack="layers")
    return {f"text.{n}": t for n, t in language.items()} | {
        f"vision.{n}": t for n, t in vision.items() if ".0." in n or ".1." in n or "embed" in n
    }


def test_a_stack_of_which_no_slice_speaks() -> None:
    models = {"a": two_stacks(1), "b": two_stacks(2)}
    slices = [layers(a=[0, 2]), layers(b=[2, 4])]
    told = fault(slices, models=models, method="passthrough")
    assert "all of them have a part in vision.layers, of which no slice speaks" in told
    slices.append({"stack": "vision.layers", **layers(a=None)})
    result = merged(slices, models, method="passthrough")
    assert all(t.equal(models["a"][n]) for n, t in result.items() if n.startswith("vision."))


@pytest.mark.parametrize(
    ("fields", "told", "right"),
    [
        ({"output": {"rank": 4}}, "an adapter has no blocks to stack", {}),
        ({"calibrate": "fsc", "samples": {"data": "x"}}, "a calibration from samples runs",
         {"calibrate": "wsc"}),
    ],
)  # fmt: skip
def test_what_slices_do_not_go_together_with(
    fields: dict[str, Any], told: str, right: dict[str, Any]
) -> None:
    assert told in fault([ALL], **fields)
    merged([ALL], **right)
