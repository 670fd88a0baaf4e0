"""A tiny suite whose labels are what a merge at a known lambda answers, and recipes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tests.evaluation.models import save_bert, save_head, save_llama, save_rows, save_suite, texts
from tests.studies.figures.suites import tuned
from torch import Tensor

import magmerge

TRUE_LAMBDA = 1.3
CLASSES = 4
ROWS = {"test": 30, "validation": 60, "train": 90}


def labels_of(model: Path, state: dict[str, Tensor], head: Path, words: list[str]) -> list[int]:
    """What the merge answers, row by row, by transformers alone."""
    from transformers import AutoTokenizer, BertModel

    module = BertModel.from_pretrained(model).eval()
    module.load_state_dict(state, strict=False)
    tokenizer, weights = AutoTokenizer.from_pretrained(model), load_file(head)
    labels = []
    for text in words:
        with torch.no_grad():
            hidden = module(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        labels.append(int((weights["weight"] @ hidden.mean(dim=0) + weights["bias"]).argmax()))
    return labels


def tuning_suite(folder: Path) -> Path:
    """A base, experts a and b, and two tasks with test, validation and training rows."""
    base = save_bert(folder / "base")
    experts = {name: tuned(base, folder / name, 1 + i) for i, name in enumerate("ab")}
    merged = magmerge.merge(
        base=base, experts=experts, method="task_arithmetic", params={"lambda": TRUE_LAMBDA}
    ).state_dict()
    tasks: dict[str, Any] = {}
    for number, name in enumerate(experts):
        head = save_head(folder / "heads" / f"{name}.safetensors", base, CLASSES, number)
        data = {}
        for place, (split, count) in enumerate(ROWS.items()):
            words = texts(count, seed=10 * number + place)
            labels = labels_of(base, merged, head, words)
            rows = [{"text": t, "label": y} for t, y in zip(words, labels, strict=True)]
            data[split] = f"data/{name}.{split}.jsonl"
            save_rows(folder / data[split], rows)
        tasks[name] = {"data": data, "head": f"heads/{name}.safetensors", "expert": name}
    return save_suite(folder, tasks)


def recipe(folder: Path, **fields: Any) -> str:
    """A recipe of the two experts; values that begin with !tune are marks."""
    content = {
        "base": str(folder / "base"),
        "experts": {name: str(folder / name) for name in "ab"},
        **fields,
    }
    return unquoted(yaml.safe_dump(content, sort_keys=False))


def unquoted(text: str) -> str:
    """Marks as marks: YAML would quote them."""
    lines = []
    for line in text.splitlines():
        head, quote, tail = line.partition("'!tune")
        lines.append(f"{head}!tune{tail.removesuffix(quote[:1])}" if quote else line)
    return "\n".join(lines) + "\n"


def change_suite(path: Path, **splits: str | None) -> Path:
    """A suite beside another whose tasks have other splits; None leaves one out."""
    content = yaml.safe_load(path.read_text())
    for name, task in content["tasks"].items():
        data = {**task["data"], **{k: v and v.format(name=name) for k, v in splits.items()}}
        task["data"] = {key: value for key, value in data.items() if value}
    other = path.with_name("other.yaml")
    other.write_text(yaml.safe_dump(content))
    return other


def language_models(folder: Path) -> str:
    """A recipe of two tiny Llamas on a third, with a mark."""
    base = save_llama(folder / "base")
    state = load_file(base / "model.safetensors")
    from safetensors.torch import save_file

    for number, name in enumerate("ab"):
        save_llama(folder / name)
        draw = torch.Generator().manual_seed(number)
        own = {k: v + 0.2 * torch.randn(v.shape, generator=draw) for k, v in state.items()}
        save_file(own, folder / name / "model.safetensors", metadata={"format": "pt"})
    return recipe(folder, method="task_arithmetic", params={"lambda": "!tune [0.0, 1.0]"})


def without_times(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of trials, less their seconds."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def write(suite: Path, place: Path, **fields: Any) -> Path:
    path = place / "recipe.yml"
    path.write_text(recipe(suite.parent, **fields))
    return path
