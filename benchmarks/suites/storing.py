"""Where a suite's files lie, and what suite.yaml and made.json say of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from .probe import Head, Labelled

Entry = dict[str, Any]
STORED_SPLITS = ("test", "validation", "calibration")


@dataclass(frozen=True)
class Layout:
    """The folder of one suite."""

    folder: Path

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return self.folder / "base"

    def expert(self, task: str) -> Path:
        """The folder of a task's expert."""
        return self.folder / "experts" / task

    def head(self, task: str) -> Path:
        """The file of a task's head."""
        return self.folder / "heads" / f"{task}.safetensors"

    def data(self, task: str, split: str, suffix: str) -> Path:
        """The file of one split of a task's data."""
        path = self.folder / "data" / f"{task}.{split}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def made(self) -> Entry:
        """What made.json says of each task that is finished."""
        path = self.folder / "made.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def record(self, task: str, entry: Entry) -> None:
        """Add a finished task to made.json, as the last step of making it."""
        text = json.dumps({**self.made(), task: entry}, indent=2, ensure_ascii=False)
        write_whole(self.folder / "made.json", text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name first, so that an interruption leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_rows(path: Path, rows: list[Entry]) -> None:
    """Write JSON lines."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_images(path: Path, data: Labelled, labelled: bool) -> None:
    """Write images as the model's forward takes them, with or without their labels."""
    tensors = {"inputs": data.inputs.contiguous()}
    if labelled:
        tensors["labels"] = data.labels
    save_tensors(tensors, path)


def save_head(head: Head, path: Path) -> None:
    """Write a head."""
    save_tensors({name: tensor.contiguous() for name, tensor in head._asdict().items()}, path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(path)


def classifier_entry(task: str, title: str, suffix: str, fields: dict[str, str]) -> Entry:
    """What suite.yaml says of a task with a head; `fields` name the columns of its data."""
    return {
        "title": title,
        "expert": f"experts/{task}",
        "head": f"heads/{task}.safetensors",
        "metric": "accuracy",
        "data": data_paths(task, suffix),
        **fields,
    }


def data_paths(task: str, suffix: str) -> dict[str, str]:
    """The files of a task's data, relative to the suite."""
    return {split: f"data/{task}.{split}.{suffix}" for split in STORED_SPLITS}


def write_suite(layout: Layout, head: Entry, tasks: dict[str, Entry]) -> None:
    """Write suite.yaml: the suite's own keys, then its tasks."""
    document = {"suite": layout.folder.name, "base": "base", **head, "tasks": tasks}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    write_whole(layout.folder / "suite.yaml", text)
