"""What slices make of a config: kinds of blocks follow them, or the plan refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import StructureError
from magmerge.core.recipe import Recipe
from magmerge.core.stacks import lengths
from tests.architectures import KEPT, MORE, SMALL
from tests.engine.test_slices import Family
from tests.sliced_models import OPTIONS, config_of, load, same, save, stacked, with_blocks

PATTERN = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
LONG = [{"layers": {"a": [0, 2]}}, {"layers": {"b": [1, 4]}}]
"""Blocks 0, 1, 1, 2, 3."""


def qwen(tmp_path: Path, **options: Any) -> Family:
    own = {"layer_types": PATTERN, "sliding_window": 4, "use_sliding_window": True}
    return Family("Qwen3ForCausalLM", tmp_path, **{**SMALL, **KEPT, "num_hidden_layers": 4, **own,
                                                   **options})  # fmt: skip


def test_types_of_blocks_follow_them(tmp_path: Path) -> None:
    family = qwen(tmp_path)
    merged = family.merge(LONG)
    config = config_of(tmp_path / "out")
    assert config["layer_types"] == [PATTERN[place] for place in (0, 1, 1, 2, 3)]
    assert config["num_hidden_layers"] == 5 == lengths(merged)["model.layers"]
    # The shorter model is told as well.
    family.merge([{"layers": {"a": [2, 4]}}])
    assert config_of(tmp_path / "out")["layer_types"] == PATTERN[2:]


def test_types_that_models_do_not_share_are_told(tmp_path: Path) -> None:
    """The result has those of the model that it has its other tensors of."""
    family = qwen(tmp_path)
    other = config_of(tmp_path / "b")
    other["layer_types"] = ["full_attention"] * 4
    (tmp_path / "b" / "config.json").write_text(json.dumps(other))
    layers = {"layers": {"a": [0, 4], "b": [0, 4]}}
    with pytest.warns(magmerge.MagmergeWarning, match=r"block 1 of .* is 'full"):
        magmerge.run(family.recipe([layers], method="average"), tmp_path / "out")
    assert config_of(tmp_path / "out")["layer_types"] == PATTERN


@pytest.mark.parametrize("kind", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_types_that_a_config_does_not_say_are_written_out(kind: str, tmp_path: Path) -> None:
    """Older configs say none: a block's number does."""
    family = Family(kind, tmp_path, **{**SMALL, **KEPT, "num_hidden_layers": 8})
    types = config_of(tmp_path / "a")["layer_types"]
    for name in ("a", "b"):
        content = config_of(tmp_path / name)
        del content["layer_types"]
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    family.merge([{"layers": {"a": [1, 4]}}, {"layers": {"b": [3, 8]}}])
    assert config_of(tmp_path / "out")["layer_types"] == [*types[1:4], *types[3:8]]


def test_numbers_of_blocks_are_those_of_the_result(tmp_path: Path) -> None:
    options = {**SMALL, **KEPT, "num_hidden_layers": 4, "num_experts": 4, "mlp_only_layers": [1],
               "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}  # fmt: skip
    family = Family("Qwen2MoeForCausalLM", tmp_path, **options)
    merged = family.merge(LONG)
    assert config_of(tmp_path / "out")["mlp_only_layers"] == [1, 2]
    a, b = family.states["a"], family.states["b"]
    same(merged, stacked("model.layers", [(a, 0, 2), (b, 1, 4)]))


def test_kinds_of_attention_that_are_told_by_repetition(tmp_path: Path) -> None:
    options = {"hidden_size": 16, "num_layers": 4, "num_heads": 2, "vocab_size": 40,
               "attention_types": [[["global", "local"], 2]]}  # fmt: skip
    family = Family("GPTNeoForCausalLM", tmp_path, **options)
    family.merge(LONG)
    model = load(family.kind, tmp_path / "out")
    kinds = ["global", "local", "local", "global", "local"]
    assert model.config.attention_layers == kinds


def test_types_of_an_encoder_and_a_decoder_apart(tmp_path: Path) -> None:
    part = {**SMALL, **KEPT, "num_hidden_layers": 4}
    family = Family("T5GemmaForConditionalGeneration", tmp_path, encoder=part, decoder=part,
                    vocab_size=40)  # fmt: skip
    types = config_of(tmp_path / "a")["decoder"]["layer_types"]
    family.merge([{"stack": "decoder", "layers": {"a": [1, 4]}}])
    config = config_of(tmp_path / "out")
    assert config["decoder"]["layer_types"] == types[1:]
    assert config["encoder"]["layer_types"] == types


def test_first_blocks_of_another_kind(tmp_path: Path) -> None:
    """Deepseek's dense ones, which come first, or not at all."""
    options = {**dict(MORE)["DeepseekV3ForCausalLM"], "num_hidden_layers": 4}
    family = Family("DeepseekV3ForCausalLM", tmp_path, **options, first_k_dense_replace=2)
    family.merge([{"layers": {"a": [0, 2]}}, {"layers": {"b": [1, 4]}}])
    assert config_of(tmp_path / "out")["first_k_dense_replace"] == 3
    family.merge([{"layers": {"a": [2, 4]}}])
    assert config_of(tmp_path / "out")["first_k_dense_replace"] == 0
    slices = [{"layers": {"a": [2, 3]}}, {"layers": {"b": [0, 4]}}]
    with pytest.raises(StructureError, match="first_k_dense_replace") as caught:
        magmerge.run(family.recipe(slices))
    assert "begin with the first blocks" in str(caught.value)


JAMBA = {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 1, "mamba_d_state": 4,
         "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
         "expert_layer_period": 2, "expert_layer_offset": 1}  # fmt: skip


def test_mixed_blocks_stay_where_their_model_has_them(tmp_path: Path) -> None:
    """Jamba's config tells periods, and no kind of each block."""
    family = Family("JambaForCausalLM", tmp_path, **JAMBA)
    for name in ("a", "b"):
        content = config_of(tmp_path / name)
        content.pop("layers_block_type", None)
        content.pop("layer_types", None)
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    family.merge([{"layers": {"a": [0, 4]}}, {"layers": {"b": [2, 4]}}])
    with pytest.raises(StructureError, match=r"slice 2: block 1 of b would be model.layers.2"):
        magmerge.run(family.recipe(LONG))


def test_features_of_a_backbone_are_of_its_last_block(tmp_path: Path) -> None:
    options = {**SMALL, "num_hidden_layers": 4, "image_size": 8, "patch_size": 4}
    family = Family("Dinov2Model", tmp_path, **options)
    family.merge([{"layers": {"a": [0, 2]}}])
    backbone = load("Dinov2Model", tmp_path / "out").config
    assert backbone.out_indices == [2]


def test_a_config_that_does_not_count_blocks_is_told(tmp_path: Path) -> None:
    family = Family("LlamaForCausalLM", tmp_path)
    content = config_of(tmp_path / "a")
    del content["num_hidden_layers"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(content))
    slices = [{"layers": {"a": [0, 3]}}]
    with pytest.raises(StructureError, match=r"says that .* has 4 blocks") as caught:
        magmerge.run(family.recipe(slices))
    assert "--donor" in str(caught.value)
    # Each of the remedies leads to a result.
    family.merge(slices, output={"donor": str(tmp_path / "b")})
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 3
    magmerge.run(family.recipe(slices, output={"force": True}), tmp_path / "forced")
    magmerge.run(family.recipe([*slices, {"layers": {"a": [3, 4]}}]), tmp_path / "whole")


def test_models_of_other_heads_are_told(tmp_path: Path) -> None:
    """Of one width, so that no shape tells it."""
    family = Family("GPT2LMHeadModel", tmp_path)
    options = with_blocks(OPTIONS["GPT2LMHeadModel"], 4)
    save("GPT2LMHeadModel", tmp_path / "b", {**options, "n_head": 4}, 3)
    with pytest.raises(StructureError, match=r"n_head is 4 in the config.json of .*b"):
        magmerge.run(family.recipe(LONG))


def test_depth_of_a_vision_transformer_of_timm(tmp_path: Path) -> None:
    """Its architecture's name tells it, unless the config does."""
    (tmp_path / "a").mkdir()
    state = {f"blocks.{number}.w.weight": torch.randn(6, 6) for number in range(4)}
    save_file({**state, "patch_embed.proj.weight": torch.randn(6, 3, 2, 2)},
              tmp_path / "a" / "model.safetensors")  # fmt: skip
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": {"qkv": 1}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    content = {"experts": {"a": str(tmp_path / "a")}, "slices": [{"layers": {"a": [1, 4]}}]}
    magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    assert config_of(tmp_path / "out")["model_args"] == {"qkv": 1, "depth": 3}


PART = {**SMALL, "num_hidden_layers": 4}


def vision_language(kind: str, folder: Path, seed: int) -> None:
    """A tiny model of text and images, saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    if kind == "LlavaForConditionalGeneration":
        vision = {k: v for k, v in PART.items() if k != "vocab_size"}
        own = transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4)
        text = transformers.LlamaConfig(**PART, **KEPT)
        config = transformers.LlavaConfig(vision_config=own, text_config=text, image_token_index=39)
    else:
        rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
        config = transformers.Qwen2_5_VLConfig(
            text_config={**PART, "num_key_value_heads": 1, "rope_scaling": rope},
            vision_config={"depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
                           "out_hidden_size": 16, "patch_size": 4, "fullatt_block_indexes": [1, 3]},
        )  # fmt: skip
    getattr(transformers, kind)(config).save_pretrained(folder)


VISION_LANGUAGE = [
    ("LlavaForConditionalGeneration", "language_model", "vision_tower", "num_hidden_layers"),
    ("Qwen2_5_VLForConditionalGeneration", "model.layers", "visual.blocks", "depth"),
]


@pytest.mark.parametrize(("kind", "text", "vision", "depth"), VISION_LANGUAGE)
def test_models_of_text_and_images(
    kind: str, text: str, vision: str, depth: str, tmp_path: Path
) -> None:
    """Each stack has its own count; layers in between go with the blocks that they come after."""
    transformers = pytest.importorskip("transformers")
    for seed, name in enumerate(("a", "b")):
        vision_language(kind, tmp_path / name, seed)
    slices = [
        {"stack": text, "layers": {"a": [0, 3]}},
        {"stack": text, "layers": {"b": [1, 4]}},
        {"stack": vision, "layers": {"b": [1, 4]}},
    ]
    experts = {name: str(tmp_path / name) for name in ("a", "b")}
    content = {"experts": experts, "method": "passthrough", "slices": slices[:2]}
    with pytest.raises(StructureError, match="of which no slice speaks") as caught:
        magmerge.run(Recipe.model_validate(content))
    assert str(caught.value).startswith("1 fault")
    content["slices"] = slices
    magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["text_config"]["num_hidden_layers"] == 6
    assert config["vision_config"][depth] == 3
    if "fullatt_block_indexes" in config["vision_config"]:
        assert config["vision_config"]["fullatt_block_indexes"] == [0, 2]
    _, told = getattr(transformers, kind).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    result, b = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "b"))
    between = [n for n in b if "merger" in n or "patch_embed" in n]
    assert between
    same(result, {name: b[name] for name in between})


def test_tensors_with_a_part_for_each_block_are_told(tmp_path: Path) -> None:
    """ESM's contacts are of the attention of all blocks."""
    family = Family("EsmModel", tmp_path, **PART, pad_token_id=1, mask_token_id=2)
    with pytest.raises(StructureError, match=r"contact_head.* has a part for each block"):
        magmerge.run(family.recipe(LONG))
    family.merge([{"layers": {"a": [0, 4]}}])


def test_blocks_that_features_are_taken_from_are_needed(tmp_path: Path) -> None:
    """Of Qwen3-VL, whose list of them is as long as that of what takes them in."""
    config = {"depth": 4, "hidden_size": 6, "deepstack_visual_indexes": [0, 2]}
    whole = {"num_hidden_layers": 4, "depth": 4, **config}
    names = [*(f"blocks.{n}.w.weight" for n in range(4)), "norm.weight"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        state = {n: torch.randn(6, 6) if "blocks" in n else torch.randn(6) for n in names}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(whole))
    experts = {name: str(tmp_path / name) for name in ("a", "b")}
    content = {"experts": experts, "method": "passthrough", "slices": LONG}
    magmerge.run(Recipe.model_validate(content), tmp_path / "out")
    assert config_of(tmp_path / "out")["deepstack_visual_indexes"] == [0, 3]
    content["slices"] = [{"layers": {"a": [0, 2]}}, {"layers": {"b": [3, 4]}}]
    with pytest.raises(StructureError, match="not all of them: 2") as caught:
        magmerge.run(Recipe.model_validate(content))
    assert "choose slices that hold the blocks 2" in str(caught.value)
