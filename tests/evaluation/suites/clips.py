"""Tiny CLIPs and classifiers with random weights, and folders of tiny images."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.data.models import save_tokenizer

WIDTH, SHARED, SIDE = 16, 8, 16


def save_clip(folder: Path, seed: int = 0, *, shared: int = SHARED) -> Path:
    """A whole CLIP with tokenizer and image processor; its embeddings have `shared` entries."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(seed)
    half = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": SHARED,
        "initializer_range": 0.5,
    }
    text = {"vocab_size": 24, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3}
    image = {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(
        text_config={**half, **text}, vision_config={**half, **image}, projection_dim=shared
    )
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return save_tokenizer(folder)


def save_vision(folder: Path, clip: Path) -> Path:
    """The bare vision encoder of a CLIP."""
    from transformers import CLIPVisionModel

    CLIPVisionModel.from_pretrained(clip).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, family: str, labels: list[str] | int, seed: int = 0) -> Path:
    """A sequence classifier of BERT or RoBERTa with its tokenizer."""
    import transformers

    torch.manual_seed(seed)
    kinds = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    more: dict[str, Any] = {"num_labels": labels if isinstance(labels, int) else len(labels)}
    if isinstance(labels, list):
        more["id2label"] = dict(enumerate(labels))
        more["label2id"] = {label: number for number, label in enumerate(labels)}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "distilbert":
        sizes = {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    else:
        sizes |= {"intermediate_size": 24}
    config = getattr(transformers, f"{kinds[family]}Config")(
        vocab_size=24, max_position_embeddings=40, pad_token_id=0, initializer_range=0.5,
        **sizes, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{kinds[family]}ForSequenceClassification")(config)
    model.save_pretrained(folder)
    return save_tokenizer(folder)


def save_images(folder: Path, count: int, seed: int = 0, *, ending: str = "png") -> Path:
    """Random pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number}.{ending}")
    return folder


def save_task(root: Path, name: str, classes: list[str], each: int = 2) -> Path:
    """A task in image-folder layout."""
    for place, split in enumerate(("train", "test")):
        for number, one in enumerate(classes):
            save_images(root / name / split / one, each, seed=100 * place + number)
    return root / name


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array of bytes in the idx format."""
    sizes = np.asarray(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def save_idx(
    folder: Path, name: str, images: Any, labels: Any, *, packed: bool = False
) -> tuple[Path, Path]:
    """A pair of idx files, as MNIST has them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(np.asarray(array))
        path = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
        paths.append(path)
    return paths[0], paths[1]
