"""Tiny dense language models of the kinds that go into mixtures, and such mixtures at work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeWarning
from tests.token_models import tokenizer

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-rope": ("Llama", {"head_dim": 16, "rope_parameters": LLAMA3}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
    "qwen3-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}
PROMPTS = {"a": ["the cat sat", "a red hat"], "b": ["the dog ran off", "in the sun"]}
IDS = torch.arange(3, 43).reshape(2, 20) % 40


def dense(folder: Path, kind: str = "llama", seed: int = 0, **sizes: Any) -> Path:
    """A model of a kind, with weights large enough that every part of it tells, and a tokenizer."""
    transformers = pytest.importorskip("transformers")
    classes, more = KINDS[kind]
    config = getattr(transformers, f"{classes}Config")(**{**SIZES, **more, **sizes})
    model = getattr(transformers, f"{classes}ForCausalLM")(config).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draws = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * draws if "norm" in name else 0.3 * draws)
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


def mixed(
    base: Path, experts: dict[str, Any], out: Path, *, seed: int = 0, **moe: Any
) -> list[str]:
    """The mixture of a recipe at `out`, and its warnings."""
    paths = {name: str(path) for name, path in experts.items()}
    recipe = magmerge.Recipe(base=str(base), experts=paths, moe=moe, seed=seed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        magmerge.run(recipe, out)
    return [str(entry.message) for entry in told if entry.category is MagmergeWarning]


def logits(folder: Path, **overrides: Any) -> Tensor:
    """What the model of a folder says of IDS; no key of it is missing, and none is too many."""
    transformers = pytest.importorskip("transformers")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **overrides
    )
    assert not any(told.values()), told
    with torch.no_grad():
        said: Tensor = model.eval()(IDS).logits
    return said


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of one file."""
    state: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return state
