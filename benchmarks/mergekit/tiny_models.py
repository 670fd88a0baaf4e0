"""Tiny models with random weights, of many architectures: a base and experts of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers

TEXT = "the cat sat on the mat and the dog ran off with a red hat in the sun"
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
DECODER = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "vocab_size": 96,
           "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
           "head_dim": 8}  # fmt: skip
SPREAD = 0.02
"""How far the experts are from their base."""


def _decoder(name: str, **more: Any) -> Callable[[], Any]:
    """A causal language model of a family of transformers'."""

    def build() -> Any:
        config = getattr(transformers, f"{name}Config")(**{**DECODER, **more})
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return build


def _t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=3,
            num_heads=4, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def _clip() -> Any:
    part = {**SIZES, "intermediate_size": 48}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**part, "vocab_size": 96, "max_position_embeddings": 16},
            vision_config={**part, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    )


def _vit() -> Any:
    config = transformers.ViTConfig(**SIZES, intermediate_size=48, image_size=16, patch_size=8)
    return transformers.ViTForImageClassification(config)


def _bert() -> Any:
    config = transformers.BertConfig(**SIZES, intermediate_size=48, vocab_size=96)
    return transformers.BertForMaskedLM(config)


def _encoder() -> Any:
    config = transformers.BertConfig(**SIZES, intermediate_size=48, vocab_size=96)
    return transformers.BertModel(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _decoder("Llama", tie_word_embeddings=False),
    "tied": _decoder("Llama", tie_word_embeddings=True),
    "mistral": _decoder("Mistral", tie_word_embeddings=False),
    "qwen2": _decoder("Qwen2", tie_word_embeddings=False),
    "qwen3": _decoder("Qwen3", tie_word_embeddings=False),
    "gemma": _decoder("Gemma"),
    "phi": _decoder("Phi", num_key_value_heads=4),
    "phi3": _decoder("Phi3"),
    "gpt2": _gpt2,
    "bert": _bert,
    "encoder": _encoder,
    "t5": _t5,
    "vit": _vit,
    "clip": _clip,
    "mixtral": _decoder("Mixtral", num_local_experts=4),
    "qwen3moe": _decoder("Qwen3Moe", num_experts=4, moe_intermediate_size=16),
}
EXPERTS = ("a", "b", "c")


def build_models(folder: Path) -> None:
    """Each family as FAMILY/base and FAMILY/a to c; models with tokens; an adapter."""
    for number, (family, build) in enumerate(FAMILIES.items()):
        torch.manual_seed(number)
        _save_family(folder / family, build(), number)
    torch.manual_seed(50)
    _save_family(folder / "half", FAMILIES["llama"]().to(torch.bfloat16), 50)
    torch.manual_seed(99)
    tokens = {"base": (), "a": ("<|one|>",), "b": ("<|two|>", "<|one|>")}
    for name, added in tokens.items():
        place = folder / "tokens" / name
        tokenizer = _tokenizer(added)
        model = FAMILIES["llama"]()
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    _adapter(folder)


def _save_family(folder: Path, model: Any, seed: int) -> None:
    model.save_pretrained(folder / "base")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, expert in enumerate(EXPERTS):
        torch.manual_seed(1000 * seed + number + 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name] + SPREAD * torch.randn_like(parameter))
        model.save_pretrained(folder / expert)


def _tokenizer(added: tuple[str, ...]) -> Any:
    own = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    own.train_from_iterator([TEXT] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if added:
        fast.add_special_tokens({"additional_special_tokens": list(added)})
    return fast


def _adapter(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama" / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(7)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "llama" / "lora")
