"""Slices through the front door: stacks of blocks, of any architecture, against plain copying."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import magmerge
from magmerge.core.errors import StructureError
from magmerge.core.recipe import Recipe
from magmerge.core.stacks import lengths
from tests.quick import quick_ones
from tests.sliced_models import (
    OPTIONS,
    State,
    config_of,
    load,
    same,
    save,
    stacked,
    with_blocks,
)

DEEP = 4


class Family:
    """A base and two models tuned from it, of a class of transformers, in folders."""

    def __init__(self, kind: str, folder: Path, **options: Any) -> None:
        self.kind, self.folder = kind, folder
        options = {**with_blocks(OPTIONS.get(kind, {}), DEEP), **options}
        self.states = {
            name: save(kind, folder / name, options, seed)
            for seed, name in enumerate(("base", "a", "b"))
        }

    def merge(self, slices: Sequence[Any], *, base: bool = False, **fields: Any) -> State:
        """The tensors of the merge of these slices, which loads and runs."""
        out = self.folder / "out"
        magmerge.run(self.recipe(slices, base=base, **fields), out, overwrite=True)
        load(self.kind, out)
        checks = magmerge.verify(out).checks
        assert not [fault for check in checks for fault in check.faults]
        return load_file(out / "model.safetensors")

    def recipe(self, slices: Sequence[Any], *, base: bool = False, **fields: Any) -> Recipe:
        named = {name for slice_ in slices for name in slice_["layers"]}
        content: dict[str, Any] = {
            "experts": {n: str(self.folder / n) for n in ("a", "b") if n in named},
            "method": "passthrough",
            "slices": list(slices),
            **fields,
        }
        if base or "base" in named:
            content["base"] = str(self.folder / "base")
        return Recipe.model_validate(content)


def model_error(family: Family, slices: Sequence[Any], **fields: Any) -> StructureError:
    with pytest.raises(StructureError) as caught:
        magmerge.run(family.recipe(slices, **fields))
    return caught.value


KINDS = [
    ("LlamaForCausalLM", {"model.layers": "num_hidden_layers"}),
    ("GPT2LMHeadModel", {"transformer.h": "n_layer"}),
    ("BertModel", {"encoder.layer": "num_hidden_layers"}),
    ("T5ForConditionalGeneration", {"encoder.block": "num_layers",
                                    "decoder.block": "num_decoder_layers"}),
    ("ViTForImageClassification", {"vit.encoder.layer": "num_hidden_layers"}),
    ("CLIPModel", {"text_model.encoder.layers": "text_config.num_hidden_layers",
                   "vision_model.encoder.layers": "vision_config.num_hidden_layers"}),
    ("MixtralForCausalLM", {"model.layers": "num_hidden_layers"}),
    ("MambaForCausalLM", {"backbone.layers": "num_hidden_layers"}),
    ("BartForConditionalGeneration", {"model.encoder.layers": "encoder_layers",
                                      "model.decoder.layers": "decoder_layers"}),
    ("WhisperForConditionalGeneration", {"model.encoder.layers": "encoder_layers",
                                         "model.decoder.layers": "decoder_layers"}),
    ("DistilBertForTokenClassification", {"distilbert.transformer.layer": "n_layers"}),
    ("BloomForCausalLM", {"transformer.h": "n_layer"}),
    ("GPTNeoXForCausalLM", {"gpt_neox.layers": "num_hidden_layers"}),
    ("OPTForCausalLM", {"model.decoder.layers": "num_hidden_layers"}),
]  # fmt: skip
QUICK = ("Llama", "GPT2", "T5", "CLIP", "Mixtral")
SHARED = ("relative_attention_bias",)
"""What T5's first block holds for all."""


@pytest.mark.parametrize(
    ("kind", "counts"), quick_ones(KINDS, lambda row: row[0].startswith(QUICK))
)
def test_blocks_of_two_models_are_stacked(
    kind: str, counts: dict[str, str], tmp_path: Path
) -> None:
    family = Family(kind, tmp_path)
    a, b = family.states["a"], family.states["b"]
    slices = [
        part
        for stack in counts
        for part in (
            {"stack": stack, "layers": {"a": [0, 3]}},
            {"stack": stack, "layers": {"b": [1, 4]}},
        )
    ]
    merged = family.merge(slices)
    wish: dict[str, Tensor] = {}
    for stack in counts:
        wish |= stacked(stack, [(a, 0, 3), (b, 1, 4)], SHARED)
    same(merged, wish)
    # What stands before the blocks is of the first slice, what stands after them of the last.
    for name in merged.keys() - wish.keys():
        assert merged[name].equal(a[name]) or merged[name].equal(b[name]), name
    assert {stack: lengths(merged)[stack] for stack in counts} == dict.fromkeys(counts, 6)
    config = config_of(tmp_path / "out")
    for path in counts.values():
        value: Any = config
        for key in path.split("."):
            value = value[key]
        assert value == 6


def test_embeddings_are_of_the_first_slice_and_norm_and_head_of_the_last(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    merged = family.merge([{"layers": {"a": [0, 2]}}, {"layers": {"b": [2, 4]}}])
    same(merged, {n: t for n, t in family.states["a"].items() if "embed_tokens" in n})
    same(
        merged,
        {
            n: t
            for n, t in family.states["b"].items()
            if n in ("lm_head.weight", "model.norm.weight")
        },
    )


def test_tables_that_only_a_first_block_has_stay_there(tmp_path: Path) -> None:
    """T5's first blocks hold the relative positions of all blocks."""
    family = Family("T5ForConditionalGeneration", tmp_path)
    merged = family.merge(
        [
            {"stack": "encoder", "layers": {"a": [2, 4]}},
            {"stack": "encoder", "layers": {"a": [0, 3]}},
        ]
    )
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert [n for n in merged if "relative" in n and n.startswith("encoder")] == [name]
    same(merged, {name: family.states["a"][name]})
    config = config_of(tmp_path / "out")
    assert (config["num_layers"], config["num_decoder_layers"]) == (5, DEEP)


def test_a_decoder_keeps_its_blocks_where_a_config_does_not_count_them(tmp_path: Path) -> None:
    family = Family("T5ForConditionalGeneration", tmp_path)
    config = config_of(tmp_path / "a")
    del config["num_decoder_layers"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    merged = family.merge([{"stack": "encoder.block", "layers": {"a": [0, 3]}}])
    assert lengths(merged) == {"decoder.block": DEEP, "encoder.block": 3}


def test_one_model_is_stacked_on_itself(tmp_path: Path) -> None:
    """Under one name, and blocks of it merged with others of its own under two names."""
    family = Family("LlamaForCausalLM", tmp_path)
    a = family.states["a"]
    merged = family.merge([{"layers": {"a": [0, 3]}}, {"layers": {"a": [1, 4]}}])
    same(merged, stacked("model.layers", [(a, 0, 3), (a, 1, 4)]))
    same(merged, {name: tensor for name, tensor in a.items() if ".layers." not in name})
    twice = {"first": str(tmp_path / "a"), "second": str(tmp_path / "a")}
    slices = [{"layers": {"first": [0, 2], "second": [2, 4]}}]
    content = {"experts": twice, "method": "average", "slices": slices}
    out = magmerge.run(Recipe.model_validate(content)).state_dict()
    for place in range(2):
        name = "model.layers.{}.mlp.up_proj.weight"
        mean = (a[name.format(place)].double() + a[name.format(place + 2)].double()) / 2
        torch.testing.assert_close(out[name.format(place)].double(), mean, rtol=1e-6, atol=1e-7)


def test_one_model_loses_blocks_without_a_method(tmp_path: Path) -> None:
    family = Family("GPT2LMHeadModel", tmp_path)
    merged = family.merge([{"layers": {"a": [0, 1]}}, {"layers": {"a": [3, 4]}}], method=None)
    a = family.states["a"]
    same(merged, stacked("transformer.h", [(a, 0, 1), (a, 3, 4)]))


def reference(
    base: Sequence[Tensor], experts: Sequence[Sequence[Tensor]], scale: float
) -> list[Tensor]:
    """base + scale * sum of task vectors, tensor by tensor."""
    return [
        own.double() + scale * sum((e[i].double() - own.double() for e in experts), torch.zeros(()))
        for i, own in enumerate(base)
    ]


def test_task_arithmetic_of_unlike_blocks(tmp_path: Path) -> None:
    """Against float64, with a vote of those alone that have a part in a slice."""
    family = Family("LlamaForCausalLM", tmp_path)
    base, a, b = family.states.values()
    slices = [
        {"layers": {"base": [0, 2], "a": [0, 2], "b": [1, 3]}},
        {"layers": {"base": [1, 3], "b": [2, 4]}},
        {"layers": {"base": [3, 4]}},
    ]
    merged = family.merge(slices, method="task_arithmetic", params={"lambda": 0.5})
    base_run = stacked("model.layers", [(base, 0, 2), (base, 1, 3), (base, 3, 4)])
    of_b = stacked("model.layers", [(b, 1, 3), (b, 2, 4)])
    of_a = stacked("model.layers", [(a, 0, 2)])
    for name, own in base_run.items():
        tuned = [state[name] for state in (of_a, of_b) if name in state]
        wish = reference([own], [[t] for t in tuned], 0.5)[0]
        torch.testing.assert_close(merged[name].double(), wish, rtol=1e-6, atol=1e-7)
    # No expert has a part in the last slice, so what comes after it is the base's.
    same(merged, {n: base[n] for n in ("lm_head.weight", "model.norm.weight")})
    embedding = "model.embed_tokens.weight"
    wish = reference([base[embedding]], [[a[embedding]], [b[embedding]]], 0.5)[0]
    torch.testing.assert_close(merged[embedding].double(), wish, rtol=1e-6, atol=1e-7)


def test_weights_are_those_of_the_voters(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    _, a, b = family.states.values()
    slices = [{"layers": {"b": [0, 2]}}, {"layers": {"a": [0, 2], "b": [2, 4]}}]
    merged = family.merge(slices, method="average", params={"weights": [3.0, 1.0]})
    same(merged, stacked("model.layers", [(b, 0, 2)]))
    name = "model.layers.{}.self_attn.q_proj.weight"
    for place in range(2):
        mean = (3 * a[name.format(place)].double() + b[name.format(place + 2)].double()) / 4
        own = merged[name.format(place + 2)].double()
        torch.testing.assert_close(own, mean, rtol=1e-6, atol=1e-7)


def test_an_expert_is_the_base_of_a_slice(tmp_path: Path) -> None:
    """In place of the recipe's, of which there is none."""
    family = Family("LlamaForCausalLM", tmp_path)
    _, a, b = family.states.values()
    slices = [
        {"layers": {"a": [0, 2], "b": [0, 2]}, "base": "a"},
        {"layers": {"a": [2, 4], "b": [1, 3]}, "base": "b"},
    ]
    merged = family.merge(slices, method="task_arithmetic", params={"lambda": 0.25})
    name = "model.layers.{}.mlp.down_proj.weight"
    for place, (base, other) in enumerate([(a, b), (a, b), (b, a), (b, a)]):
        own, tuned = (place - (base is b), place - (other is b)) if place > 1 else (place, place)
        wish = reference([base[name.format(own)]], [[other[name.format(tuned)]]], 0.25)[0]
        torch.testing.assert_close(merged[name.format(place)].double(), wish, rtol=1e-6, atol=1e-7)


def test_the_base_of_a_slice_comes_first_where_a_method_knows_no_base(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    layers = {"a": [0, 4], "b": [0, 4]}
    plain = family.merge([{"layers": layers}], method="slerp", params={"t": 0.2})
    turned = family.merge([{"layers": layers, "base": "b"}], method="slerp", params={"t": 0.8})
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, turned[name], rtol=1e-5, atol=1e-6)


def test_a_slice_without_the_base_is_merged_and_not_calibrated(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    slices = [
        {"layers": {"base": [0, 2], "a": [0, 2], "b": [0, 2]}},
        {"layers": {"a": [2, 4], "b": [2, 4]}},
    ]
    fields: dict[str, Any] = {"method": "average", "calibrate": "wsc", "gate": "off"}
    with pytest.warns(magmerge.MagmergeWarning):
        result = magmerge.run(family.recipe(slices, **fields))
    by_layer = {record.name: record.calibrated_by for record in result.records}
    assert by_layer["model.layers.1.mlp.up_proj.weight"] == ("wsc",)
    assert by_layer["model.layers.2.mlp.up_proj.weight"] == ()
    whole = family.recipe([{"layers": {n: [0, 4] for n in ("base", "a", "b")}}], **fields)
    plain = Recipe.model_validate({**whole.model_dump(), "slices": []})
    with pytest.warns(magmerge.MagmergeWarning):
        sliced, direct = (magmerge.run(recipe).state_dict() for recipe in (whole, plain))
    same(sliced, direct)
    first = [n for n in direct if n.startswith(("model.layers.0.", "model.layers.1."))]
    same(result.state_dict(), {name: direct[name] for name in first})
    result.save(tmp_path / "out")
    load(family.kind, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "base 0 to 2, a 0 to 2, b 0 to 2" in page


def test_a_deeper_model_under_other_names(tmp_path: Path) -> None:
    """The further blocks of a model without a head have the same beginning as its others."""
    options = OPTIONS["LlamaForCausalLM"]
    a = save("LlamaForCausalLM", tmp_path / "a", with_blocks(options, 4), 0)
    b = save("LlamaModel", tmp_path / "b", with_blocks(options, 6), 1)
    experts = {name: str(tmp_path / name) for name in ("a", "b")}
    slices = [{"layers": {"a": [0, 2]}}, {"layers": {"b": [2, 6]}}, {"layers": {"a": [3, 4]}}]
    content = {"experts": experts, "method": "passthrough", "slices": slices}
    with pytest.warns(magmerge.MagmergeWarning, match="are named otherwise"):
        magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    load("LlamaForCausalLM", tmp_path / "out")
    own = {f"model.{name}": tensor for name, tensor in b.items()}
    wish = stacked("model.layers", [(a, 0, 2), (own, 2, 6), (a, 3, 4)])
    same(load_file(tmp_path / "out" / "model.safetensors"), wish)
