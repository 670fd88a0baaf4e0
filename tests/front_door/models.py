"""Tiny language models for tests of the front door, and noise in place of training."""

from __future__ import annotations

import copy
from typing import Any

import torch

TIED = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
}


def llama(seed: int = 0, *, vocab: int = 64, tie: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tie,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def trained(model: Any, seed: int, size: float = 0.02) -> Any:
    """A copy with noise on all that is trained."""
    torch.manual_seed(seed)
    found = copy.deepcopy(model)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn_like(parameter)
    return found


def with_lora(model: Any, seed: int, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 4, **config}
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    return trained(wrapped, seed, 0.1)
