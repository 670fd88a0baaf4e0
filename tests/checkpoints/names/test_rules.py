"""Merges of models whose names differ by wrappers, by age, or by the version of a library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints.names.pairs import pair
from magmerge.core.errors import StructureError
from tests.conftest import State

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def state(*names: str, seed: int = 0) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, generator=draw) for name in names}


def taken(base: State, expert: State, **keywords: Any) -> State:
    """The base with all of the expert's change."""
    return magmerge.merge(
        base=base, experts=[expert], params={"lambda": 1.0}, **keywords
    ).state_dict()


def check(base: State, expert: State, truth: State, **keywords: Any) -> None:
    result = taken(base, expert, **keywords)
    assert result.keys() == base.keys()
    for name, tensor in truth.items():
        torch.testing.assert_close(result[name], tensor)


NAMES = ("embed.weight", "layers.0.attn.weight", "layers.1.attn.weight", "head.weight")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("place", ["^", r"layers\.\d\.", r"attn\."])
@pytest.mark.parametrize("side", ["base", "expert"])
def test_wrappers_anywhere_in_a_name(wrapper: str, place: str, side: str) -> None:
    base, expert = state(*NAMES), state(*NAMES, seed=1)
    new = {name: re.sub(f"({place})", rf"\1{wrapper}", name) for name in NAMES}
    if side == "base":
        base = {new[name]: tensor for name, tensor in base.items()}
        check(base, expert, {new[name]: tensor for name, tensor in expert.items()})
    else:
        check(base, {new[name]: tensor for name, tensor in expert.items()}, expert)


def test_two_names_that_would_be_one_are_left_as_they_are() -> None:
    base, expert = state(*NAMES), state(*NAMES, seed=1)
    expert["module.head.weight"] = expert.pop("embed.weight")
    with pytest.raises(StructureError, match=r"embed\.weight is missing"):
        taken(base, expert)


def test_two_prefixes_that_are_equally_good_are_both_refused() -> None:
    base = state("encoder.0.weight", "decoder.0.weight")
    with pytest.raises(StructureError):
        taken(base, state("0.weight"))


def test_what_is_renamed_is_said() -> None:
    base, expert = state(*NAMES), state(*NAMES, seed=1)
    old = {f"_orig_mod.{name}": tensor for name, tensor in expert.items()}
    warnings = magmerge.plan(base=base, experts=[old]).warnings
    assert [w for w in warnings if "4 tensors are named otherwise than in" in w and "wrappers" in w]


def test_gamma_and_beta_are_a_layer_norms_weight_and_bias() -> None:
    base = state("bert.LayerNorm.gamma", "bert.LayerNorm.beta", "bert.dense.weight")
    expert = state("bert.LayerNorm.weight", "bert.LayerNorm.bias", "bert.dense.weight", seed=1)
    truth = dict(zip(base, expert.values(), strict=True))
    check(base, expert, truth)
    check(expert, base, dict(zip(expert, base.values(), strict=True)))


def test_a_layer_scale_is_no_layer_norm() -> None:
    """ConvNeXt's and BEiT's gamma, and a block that has a weight beside it."""
    base = state("stages.0.gamma", "blocks.0.gamma_1", "ls1.gamma", "conv.weight")
    expert = {**state("stages.0.weight", "blocks.0.weight_1", "ls1.weight"), **state("conv.weight")}
    with pytest.raises(StructureError) as caught:
        taken(base, expert)
    assert len(caught.value.faults) == 6


def test_weight_norm_old_and_new() -> None:
    from torch import nn
    from torch.nn.utils import parametrizations, weight_norm

    with pytest.warns(FutureWarning):
        old = nn.Sequential(weight_norm(nn.Conv1d(3, 4, 2)), nn.Linear(4, 2))
    new = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(3, 4, 2)), nn.Linear(4, 2))
    result = taken(dict(old.state_dict()), dict(new.state_dict()))
    old.load_state_dict(result)
    signal = torch.randn(1, 3, 4)
    torch.testing.assert_close(old[0](signal), new[0](signal))


VISION_LANGUAGE = {
    "qwen2_vl": {
        "model.layers.0.q.weight": "model.language_model.layers.0.q.weight",
        "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        "visual.blocks.0.weight": "model.visual.blocks.0.weight",
        "lm_head.weight": "lm_head.weight",
    },
    "llava": {
        "language_model.model.layers.0.q.weight": "model.language_model.layers.0.q.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "vision_tower.layers.0.weight": "model.vision_tower.layers.0.weight",
        "multi_modal_projector.linear.weight": "model.multi_modal_projector.linear.weight",
    },
    "mllama": {
        "language_model.model.layers.0.q.weight": "model.language_model.layers.0.q.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "vision_model.layers.0.weight": "model.vision_model.layers.0.weight",
        "multi_modal_projector.weight": "model.multi_modal_projector.weight",
    },
}


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
@pytest.mark.parametrize("back", [False, True])
def test_vision_language_models_of_both_ages(kind: str, back: bool) -> None:
    names = VISION_LANGUAGE[kind]
    pairs = {new: old for old, new in names.items()} if back else names
    base, own = state(*pairs), state(*pairs.values(), seed=1)
    check(base, own, {old: own[new] for old, new in pairs.items()})


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def transformer(kind: str) -> Any:
    """A tiny model of transformers whose names on disk are not those in memory."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "intermediate_size": 24}
    image = {"image_size": 8, "patch_size": 4}
    text = {**size, "vocab_size": 40, "num_key_value_heads": 1}
    if kind in ("vit", "deit", "dinov2"):
        name = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2"}[kind]
        config = getattr(transformers, f"{name}Config")(**size, **image)
        return getattr(transformers, f"{name}ForImageClassification")(config)
    if kind == "gpt_neox":
        config = transformers.GPTNeoXConfig(**size, vocab_size=40, tie_word_embeddings=False)
        return transformers.GPTNeoXForCausalLM(config)
    if kind == "swin":
        config = transformers.SwinConfig(
            image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], window_size=2
        )
        return transformers.SwinForImageClassification(config)
    if kind == "segformer":
        config = transformers.SegformerConfig(
            num_encoder_blocks=1, depths=[1], sr_ratios=[2], hidden_sizes=[8], patch_sizes=[3],
            strides=[2], num_attention_heads=[2], mlp_ratios=[2], decoder_hidden_size=8,
        )  # fmt: skip
        return transformers.SegformerForSemanticSegmentation(config)
    if kind == "llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**size, **image),
            text_config=transformers.LlamaConfig(**text),
            image_token_index=39,
        )
        return transformers.LlavaForConditionalGeneration(config)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**size, **image).to_dict(),
        text_config=transformers.GemmaConfig(**text, head_dim=8).to_dict(),
        projection_dim=16,
        image_token_index=39,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def mixture(kind: str) -> Any:
    """A tiny mixture of experts, which transformers 5 has fused in memory and apart on disk."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    name, count = {
        "mixtral": ("Mixtral", "num_local_experts"),
        "qwen": ("Qwen3Moe", "num_experts"),
        "olmoe": ("Olmoe", "num_experts"),
    }[kind]
    more = {"moe_intermediate_size": 12} if kind == "qwen" else {}
    config = getattr(transformers, f"{name}Config")(**size, **{count: 3}, **more)
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "qwen", "olmoe"])
@pytest.mark.parametrize("back", [False, True])
def test_mixtures_of_experts_fused_and_apart(kind: str, back: bool, tmp_path: Path) -> None:
    model = mixture(kind)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = load_file(_saved(model, tmp_path / "base") / "model.safetensors")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    own = dict(model.state_dict())
    truth = load_file(_saved(model, tmp_path / "truth") / "model.safetensors")
    assert own.keys() != truth.keys()
    check(first, truth, own) if back else check(saved, own, truth)


KINDS = ["llava", "paligemma", "vit", "deit", "dinov2", "swin", "segformer", "gpt_neox"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_transformers_goes_onto_its_saved_model(kind: str, tmp_path: Path) -> None:
    model = transformer(kind)
    base = _saved(model, tmp_path / "base")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    truth = load_file(_saved(model, tmp_path / "truth") / "model.safetensors")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False):
        own = {name: tensor for name, tensor in own.items() if "lm_head" not in name}
    save_file(own, tmp_path / "own.safetensors")
    result = magmerge.merge(
        base=base, experts=[tmp_path / "own.safetensors"], params={"lambda": 1.0}
    ).state_dict()
    assert result.keys() == truth.keys()
    assert all(torch.allclose(result[name], tensor) for name, tensor in truth.items())


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_an_adapter_goes_onto_a_model_of_other_names(old: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = transformer("llava")
    base = _saved(model, tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=".*language_model.*(q_proj|v_proj)")
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    file = _saved(adapted, tmp_path / "adapter") / "adapter_model.safetensors"
    if old:
        factors = load_file(file)
        new, was = "model.model.language_model.", "model.language_model.model."
        save_file({name.replace(new, was): t for name, t in factors.items()}, file)
    truth = load_file(_saved(adapted.merge_and_unload(), tmp_path / "truth") / "model.safetensors")
    result = magmerge.merge(
        base=base, experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    assert all(torch.allclose(result[name], tensor, atol=1e-6) for name, tensor in truth.items())


def test_pairs_are_one_to_one_whatever_the_names() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    words = ["module", "_orig_mod", "model", "language_model", "visual", "0", "norm", "gamma", ""]
    segment = hypothesis.strategies.sampled_from([*words, "weight", "weight_g", "beta", "layers"])
    name = hypothesis.strategies.lists(segment, min_size=1, max_size=5).map(".".join)
    several = hypothesis.strategies.sets(name, max_size=8)

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(several, several)
    def run(own: set[str], theirs: set[str]) -> None:
        names = pair(sorted(own), sorted(theirs)).names
        assert set(names) <= own
        assert set(names.values()) <= theirs
        assert len(set(names.values())) == len(names)
        assert all(names.get(name) == name for name in own & theirs)

    run()


def test_a_merged_model_its_base_and_its_expert_may_have_three_kinds_of_names() -> None:
    base, expert, merge = (state(*NAMES, seed=seed) for seed in range(3))
    merge = {name: base[name] + 0.5 * (expert[name] - base[name]) for name in NAMES}
    plain = magmerge.calibrate(merge, base=base, experts=[expert]).state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in base.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in expert.items()}
    result = magmerge.calibrate(merge, base=wrapped, experts=[compiled]).state_dict()
    assert all(torch.equal(result[name], tensor) for name, tensor in plain.items())


def test_without_a_base_the_first_experts_names_are_the_results() -> None:
    first, second = state(*NAMES), state(*NAMES, seed=1)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in second.items()}
    result = magmerge.merge(experts=[first, compiled], method="average").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(result[name], (tensor + second[name]) / 2)


def test_the_remedy_of_a_missing_tensor_is_followed() -> None:
    base, expert = state(*NAMES), state(*NAMES, seed=1)
    other = {name.replace("attn", "mixer"): tensor for name, tensor in expert.items()}
    with pytest.raises(StructureError, match="missing") as caught:
        taken(base, other)
    assert "--rename 'OLD=NEW' (rename=)" in str(caught.value)
    check(base, other, expert, rename={"*.mixer.*": "*.attn.*"})


def test_adapters_alone_of_both_ages_are_merged_module_by_module(tmp_path: Path) -> None:
    modules = ("layers.0.q_proj", "layers.1.q_proj")
    draw = torch.Generator().manual_seed(0)
    truth: dict[str, torch.Tensor] = {}
    for folder, prefix in (("new", "model.language_model."), ("old", "model.")):
        (tmp_path / folder).mkdir()
        factors: State = {}
        for module in modules:
            key = f"base_model.model.{prefix}{module}"
            factors[f"{key}.lora_A.weight"] = down = torch.randn(1, 4, generator=draw)
            factors[f"{key}.lora_B.weight"] = up = torch.randn(5, 1, generator=draw)
            truth[module] = truth.get(module, 0) + up @ down / 2
        save_file(factors, tmp_path / folder / "adapter_model.safetensors")
        (tmp_path / folder / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}'
        )
    result = magmerge.merge(
        experts=[tmp_path / "new", tmp_path / "old"], method="average", rank="exact"
    ).content
    assert {f"model.language_model.{module}" for module in modules} == set(result.modules)
    for module, tensor in truth.items():
        up, down, scale = result.modules[f"model.language_model.{module}"]
        torch.testing.assert_close(scale * up @ down, tensor)
