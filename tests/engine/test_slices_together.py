"""Slices with what else a recipe may have: adapters, vocabularies, ties, several documents."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.recipe import Recipe
from magmerge.engine.plan import describe, make_plan
from magmerge.engine.resolve import open_job
from magmerge.report.terminal_tables import plan_summary
from tests.conftest import CommandLine
from tests.engine.test_slice_faults import MODELS, layers, merged, model
from tests.engine.test_slices import Family
from tests.quick import examples
from tests.sliced_models import config_of, load, same, stacked
from tests.token_models import EMBEDDING, HEAD, loaded, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")

RANGES = st.tuples(st.integers(0, 3), st.integers(1, 4)).filter(lambda pair: pair[0] < pair[1])


@st.composite
def plans(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Slices of one to three, each of some of the models; each model has a part in one of them."""
    slices = []
    for _ in range(draw(st.integers(1, 3))):
        start, stop = draw(RANGES)
        names = draw(st.sets(st.sampled_from(("base", "a", "b")), min_size=1))
        first = {name: draw(st.integers(0, 4 - (stop - start))) for name in sorted(names)}
        slices.append(layers(**{n: [own, own + stop - start] for n, own in first.items()}))
    return [*slices, layers(a=[0, 1], b=[0, 1])]


@settings(deadline=None, max_examples=examples(60))
@given(plans(), st.lists(st.floats(0.1, 2), min_size=2, max_size=2))
def test_any_slices_are_their_blocks_averaged(
    slices: list[dict[str, Any]], weights: list[float]
) -> None:
    """Against float64: the weighted mean of the voters, or the base where there is none."""
    result = merged(slices, params={"weights": weights})
    blocks = [
        {name: start + offset for name, (start, _) in own.items()}
        for slice_ in slices
        for own in [slice_["layers"]]
        for offset in range(next(stop - start for start, stop in own.values()))
    ]
    assert [n for n in result if "mlp" in n] == [
        f"layers.{i}.mlp.weight" for i in range(len(blocks))
    ]
    own_weights = dict(zip(("a", "b"), weights, strict=True))
    for place, block in enumerate(blocks):
        votes = {name: number for name, number in block.items() if name != "base"} or block
        parts = {
            n: MODELS[n][f"layers.{number}.mlp.weight"].double() for n, number in votes.items()
        }
        shares = {name: own_weights.get(name, 1.0) for name in parts}
        wish = sum(shares[name] * parts[name] for name in parts) / sum(shares.values())
        own = result[f"layers.{place}.mlp.weight"].double()
        torch.testing.assert_close(own, torch.as_tensor(wish), rtol=1e-5, atol=1e-6)


def test_trimming_over_the_whole_model_looks_at_voters_alone() -> None:
    """ties with one expert in each slice keeps of each its greatest entries, wherever they are."""
    slices = [layers(base=[0, 2], a=[0, 2]), layers(base=[2, 4], a=[2, 4], b=[2, 4])]
    result = merged(slices, method="ties", params={"density": 0.5, "scope": "tensor"})
    name = "layers.0.mlp.weight"
    delta = MODELS["a"][name] - MODELS["base"][name]
    kept = delta * (delta.abs() >= delta.abs().flatten().kthvalue(delta.numel() // 2 + 1).values)
    torch.testing.assert_close(result[name], MODELS["base"][name] + kept)


def test_an_adapter_is_an_expert_in_slices(tmp_path: Path) -> None:
    """Its change is that of its own block, also where the base has another one at the place."""
    peft = pytest.importorskip("peft")
    family = Family("LlamaForCausalLM", tmp_path)
    base = load(family.kind, tmp_path / "base")
    torch.manual_seed(5)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.save_pretrained(tmp_path / "lora")
    whole = {n: t.clone() for n, t in tuned.merge_and_unload().state_dict().items()}
    origin, b = family.states["base"], family.states["b"]
    slices = [
        layers(base=[0, 2], lora=[0, 2], b=[0, 2]),
        layers(base=[0, 2], lora=[1, 3]),
        layers(b=[3, 4], base=[3, 4]),
    ]
    content = {
        "base": str(tmp_path / "base"),
        "experts": {"lora": str(tmp_path / "lora"), "b": str(tmp_path / "b")},
        "method": "task_arithmetic",
        "params": {"lambda": 1.0},
        "slices": slices,
    }
    magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    load(family.kind, tmp_path / "out")
    result = load_file(tmp_path / "out" / "model.safetensors")
    parts = [(0, 0, 0), (1, 1, 1), (0, 1, None), (1, 2, None), (3, None, 3)]
    for inner in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"):
        for place, (own, lora, other) in enumerate(parts):
            before = origin[f"model.layers.{own}.{inner}"].double()
            wish = before.clone()
            for state, number in ((whole, lora), (b, other)):
                if number is not None:
                    wish += state[f"model.layers.{number}.{inner}"].double() - before
            own_result = result[f"model.layers.{place}.{inner}"].double()
            torch.testing.assert_close(own_result, wish, rtol=1e-5, atol=1e-5)
    # Alone it is stacked as the model that it makes.
    content |= {"experts": {"lora": str(tmp_path / "lora")}, "method": "passthrough", "params": {}}
    content |= {"slices": [layers(lora=[0, 3]), layers(lora=[1, 4])]}
    stack = magmerge.run(Recipe.model_validate(content)).state_dict()
    for name, tensor in stacked("model.layers", [(whole, 0, 3), (whole, 1, 4)]).items():
        torch.testing.assert_close(stack[name], tensor, rtol=1e-5, atol=1e-5)


def test_heads_that_are_embeddings(tmp_path: Path) -> None:
    """They stay one, also where what follows the blocks is of another model."""
    family = Family("Qwen2ForCausalLM", tmp_path)
    result = family.merge([layers(a=[0, 2]), layers(b=[2, 4])])
    assert "lm_head.weight" not in result
    same(result, {n: t for n, t in family.states["a"].items() if "embed_tokens" in n})
    model = load(family.kind, tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_ties_in_memory_are_those_of_their_embedding(tmp_path: Path) -> None:
    models: dict[str, Any] = {}
    for seed, name in enumerate(("a", "b")):
        state = model(seed)
        models[name] = {**state, "lm_head.weight": state["embed_tokens.weight"]}
    result = merged([layers(a=[0, 2]), layers(b=[2, 4])], models, method="passthrough")
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert result[name].equal(models["a"]["embed_tokens.weight"])


def test_vocabularies_are_matched_in_slices(tmp_path: Path) -> None:
    """The first slice's models say the rows, each by its token's text."""
    states: dict[str, dict[str, Tensor]] = {}
    words = {name: tokenizer(tmp_path / name, added) for name, added in TOKENS.items()}
    for seed, (name, own) in enumerate(words.items()):
        rows = len(own)
        generator = torch.Generator().manual_seed(seed)
        shapes = {EMBEDDING: (rows, 6), HEAD: (rows, 6)}
        shapes |= {f"model.layers.{number}.w.weight": (6, 6) for number in range(3)}
        states[name] = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        save_file(states[name], tmp_path / name / "model.safetensors")
        config = {"model_type": "tiny", "vocab_size": rows, "hidden_size": 6,
                  "num_hidden_layers": 3}  # fmt: skip
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    content = {
        "base": str(tmp_path / "base"),
        "experts": {name: str(tmp_path / name) for name in ("chat", "tool")},
        "method": "task_arithmetic",
        "params": {"lambda": 0.5},
        "slices": [layers(base=[0, 3], chat=[0, 3]), layers(base=[1, 3], chat=[1, 3], tool=[0, 2])],
    }
    magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    result, own = load_file(tmp_path / "out" / "model.safetensors"), loaded(tmp_path / "out")
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 5
    assert config_of(tmp_path / "out")["vocab_size"] == len(result[EMBEDDING]) == len(result[HEAD])
    for name, voters in ((EMBEDDING, ("chat",)), (HEAD, ("chat", "tool"))):
        for text, place in own.get_vocab().items():
            rows = {
                model: states[model][name][words[model].get_vocab()[text]].double()
                for model in words
                if text in words[model].get_vocab()
            }
            votes = [rows[voter] for voter in voters if voter in rows]
            if not votes:
                # Nobody with a part in this slice has the token: its row is its owner's.
                wish = rows["tool"] if "base" not in rows else rows["base"]
            elif "base" in rows:
                wish = rows["base"] + 0.5 * sum(vote - rows["base"] for vote in votes)
            else:
                wish = sum(votes) / len(votes)
            torch.testing.assert_close(result[name][place].double(), wish, rtol=1e-6, atol=1e-6)


TOKENS = {"base": [], "chat": ["<|im_start|>", "<|im_end|>"], "tool": ["<|tool|>", "<|im_end|>"]}


def test_a_recipe_with_slices_on_the_command_line(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    family = Family("GPT2LMHeadModel", tmp_path)
    recipe = family.recipe([layers(a=[0, 3]), layers(b=[1, 4])])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    plan = make_plan(open_job(recipe, {}))
    told = "transformer.h has 6 blocks in the result: a 0-2, then b 1-3"
    assert told in plan_summary(plan).plain
    assert describe(plan)["blocks"] == [told]
    done = magmerge_cli("merge", tmp_path / "recipe.yaml", tmp_path / "out")
    assert done.code == 0
    verified = magmerge_cli("verify", tmp_path / "out", "--load")
    assert verified.code == 0
    a, b = family.states["a"], family.states["b"]
    same(load_file(tmp_path / "out" / "model.safetensors"),
         stacked("transformer.h", [(a, 0, 3), (b, 1, 4)]))  # fmt: skip


def test_a_stack_of_one_document_is_an_expert_of_the_next(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    a, b = family.states["a"], family.states["b"]
    first = family.recipe([layers(a=[0, 2]), layers(b=[2, 4])]).model_copy(update={"name": "stack"})
    second = Recipe.model_validate(
        {"experts": {"s": "stack", "a": str(tmp_path / "a")}, "method": "average",
         "slices": [layers(s=[2, 4], a=[2, 4])]}
    )  # fmt: skip
    magmerge.run([first, second], tmp_path / "out")
    load(family.kind, tmp_path / "out")
    result = load_file(tmp_path / "out" / "model.safetensors")
    name = "mlp.up_proj.weight"
    for place in range(2):
        wish = (a[f"model.layers.{place + 2}.{name}"] + b[f"model.layers.{place + 2}.{name}"]) / 2
        torch.testing.assert_close(result[f"model.layers.{place}.{name}"], wish)


def test_resumed_and_cut_into_shards(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    slices = [layers(base=[0, 3], a=[0, 3]), layers(base=[1, 4], a=[1, 4], b=[1, 4])]
    fields: dict[str, Any] = {"method": "task_arithmetic", "output": {"shard_size": 20_000}}
    magmerge.run(family.recipe(slices, **fields), tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    load(family.kind, tmp_path / "shards")
    whole = magmerge.run(family.recipe(slices, method="task_arithmetic")).state_dict()
    for file in (tmp_path / "shards").glob("*.safetensors"):
        same(whole, load_file(file))


def test_formats_of_several_models_are_told(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in MODELS["a"].items()}
    models = {"a": half, "b": MODELS["b"]}
    slices = [layers(a=[0, 2]), layers(b=[2, 4])]
    with pytest.warns(magmerge.MagmergeWarning, match="stored as bfloat16 and float32"):
        result = merged(slices, models, method="passthrough")
    assert result["layers.1.mlp.weight"].equal(half["layers.1.mlp.weight"])
    assert result["layers.2.mlp.weight"].equal(MODELS["b"]["layers.2.mlp.weight"])
    one = merged(slices, models, method="passthrough", output={"dtype": "bfloat16"})
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}


GRADED = [
    ("T5ForConditionalGeneration", ("encoder.block", "decoder.block")),
    ("CLIPModel", ("text_model.encoder.layers", "vision_model.encoder.layers")),
    ("MixtralForCausalLM", ("model.layers",)),
]


@pytest.mark.parametrize(("kind", "stacks"), GRADED)
def test_gradients_run_through_each_stack(
    kind: str, stacks: tuple[str, ...], tmp_path: Path
) -> None:
    """From the first of its blocks to the last; embeddings and heads are where they begin."""
    family = Family(kind, tmp_path)
    a, b = family.states["a"], family.states["b"]
    slices = [{"stack": stack, **layers(a=[0, 3], b=[1, 4])} for stack in stacks]
    result = family.merge(slices, method="slerp", params={"t": [0, 1]})
    for stack in stacks:
        ends = stacked(stack, [(a, 0, 1), (a, 1, 2), (b, 3, 4)], ["relative_attention"])
        same(result, {name: t for name, t in ends.items() if f"{stack}.1." not in name})
    outside = [n for n in a if not n.startswith(tuple(f"{stack}." for stack in stacks))]
    same(result, {name: a[name] for name in outside})


def test_a_base_without_a_part_lends_its_config_and_tokenizer_alone(tmp_path: Path) -> None:
    """As mergekit's base_model does under passthrough: its tensors are nowhere in the result."""
    family = Family("LlamaForCausalLM", tmp_path)
    words = {name: tokenizer(tmp_path / name) for name in ("base", "a", "b")}
    (tmp_path / "base" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    slices = [layers(a=[0, 2]), layers(b=[1, 4])]
    result = family.merge(slices, base=True)
    a, b = family.states["a"], family.states["b"]
    same(result, stacked("model.layers", [(a, 0, 2), (b, 1, 4)]))
    same(result, {"model.norm.weight": b["model.norm.weight"]})
    assert loaded(tmp_path / "out").get_vocab() == words["base"].get_vocab()
    assert "max_new_tokens" in (tmp_path / "out" / "generation_config.json").read_text()


def test_other_blocks_of_a_base_say_nothing_of_its_kinship(tmp_path: Path) -> None:
    """The experts are near the base, and its blocks far from each other."""
    generator = torch.Generator().manual_seed(3)
    models = {"base": model(0, width=16)}
    for name in ("a", "b"):
        noise = {n: torch.randn(t.shape, generator=generator) for n, t in models["base"].items()}
        models[name] = {n: t + 0.05 * noise[n] for n, t in models["base"].items()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        merged([layers(base=[0, 3], a=[1, 4], b=[1, 4])], models)
    assert not [str(w.message) for w in told if "in common" in str(w.message)]
