"""Tiny models with random weights, and suites of tasks on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from tests.data.models import WORDS, save_tokenizer

WIDTH = 16


def save_bert(folder: Path, seed: int = 0, *, classes: int | None = None) -> Path:
    """A BERT with its tokenizer; with `classes` it ends in a classifier."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=24, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, num_labels=classes or 2,
        initializer_range=0.5,
    )  # fmt: skip
    kind = BertModel if classes is None else BertForSequenceClassification
    kind(config).save_pretrained(folder)
    return save_tokenizer(folder)


def save_llama(folder: Path, seed: int = 0) -> Path:
    """A causal Llama with its tokenizer, which has no padding token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, max_position_embeddings=64,
        initializer_range=0.5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return save_tokenizer(folder, causal=True)


def texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Random words, at least two a text."""
    generator = random.Random(seed)
    return [
        " ".join(generator.choices(WORDS, k=generator.randint(2, longest))) for _ in range(count)
    ]


def save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_head(path: Path, model: Path, classes: int, seed: int = 0) -> Path:
    """A random head; its bias makes each class the best one for some texts."""
    from transformers import AutoTokenizer, BertModel

    torch.manual_seed(seed)
    weight = torch.randn(classes, WIDTH)
    inputs = AutoTokenizer.from_pretrained(model)(texts(50), padding=True, return_tensors="pt")
    with torch.no_grad():
        features = BertModel.from_pretrained(model).eval()(**inputs).last_hidden_state
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight, "bias": -weight @ features.mean(dim=(0, 1))}, path)
    return path


def save_suite(folder: Path, tasks: dict[str, Any], **more: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"suite": "tiny", "base": "base", **more, "tasks": tasks}))
    return path


def bert_suite(folder: Path, **more: Any) -> Path:
    """A base, an expert, and two tasks of three and two classes in three splits."""
    save_bert(folder / "base")
    save_bert(folder / "expert", seed=1)
    tasks = {}
    for number, (name, classes) in enumerate({"three": 3, "two": 2}.items()):
        save_head(folder / "heads" / f"{name}.safetensors", folder / "base", classes, number)
        data = {}
        for place, split in enumerate(("test", "validation")):
            generator = random.Random(10 * number + place)
            rows = [
                {"text": text, "label": generator.randrange(classes)}
                for text in texts(70, seed=10 * number + place)
            ]
            save_rows(folder / "data" / f"{name}.{split}.jsonl", rows)
            data[split] = f"data/{name}.{split}.jsonl"
        tasks[name] = {
            "title": f"Task of {name}",
            "expert": "expert",
            "head": f"heads/{name}.safetensors",
            "metric": "accuracy" if number == 0 else "f1",
            "data": data,
        }
    return save_suite(folder, tasks, **more)


def save_clip(folder: Path, seed: int = 0, *, layers: int = 3) -> Path:
    """CLIP's vision tower with its projection and its image processor, for images of 12 x 12."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        image_size=12, patch_size=6, projection_dim=8, initializer_range=0.5,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    size = {"shortest_edge": 12}
    CLIPImageProcessor(size=size, crop_size={"height": 12, "width": 12}).save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int, classes: int = 3, seed: int = 0) -> Path:
    """JPEG images of noise in a folder for each class."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    for number in range(count):
        place = folder / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (14, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04}.jpg")
    return folder


def clip_suite(folder: Path, count: int = 70) -> Path:
    """Two image tasks on a CLIP vision tower, with heads on its projected embeddings."""
    save_clip(folder / "base")
    tasks = {}
    for number, name in enumerate(("one", "two")):
        save_images(folder / "images" / name, count, seed=number)
        head = folder / "heads" / f"{name}.safetensors"
        head.parent.mkdir(exist_ok=True)
        torch.manual_seed(number)
        save_file({"weight": torch.randn(3, 8)}, head)
        tasks[name] = {"data": f"images/{name}", "head": f"heads/{name}.safetensors"}
    model = {"class": "CLIPVisionModelWithProjection", "features": "embeds"}
    return save_suite(folder, tasks, model=model)
