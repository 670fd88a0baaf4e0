"""Small language models and questions whose answers their experts learnt, as harness tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from examples.tiny.encoders import tune_language_model, write_language_model
from examples.tiny.words import LENGTH, WORDS, word

from magmerge.linalg.draws import derive_seed
from magmerge.studies.reproduction.pipelines import ExpertEntry

HARNESS = "harness"
"""The folder of the tasks' files."""
FOLLOWERS = 3
"""Words that may follow a word in a skill's texts."""
CHOICES = 4
TESTED = 48
ROWS = {"train": 96, "test": TESTED}
STARTS = 20
"""Words that a text may begin with, so that a small expert meets the same ones again."""


def write_skills(base: Path, experts: Mapping[str, Path], data: Path) -> None:
    """Write a base, and for each skill an expert, its texts, and a task file."""
    write_language_model(base, "llama", seed=0)
    tasks = data / HARNESS
    tasks.mkdir(parents=True, exist_ok=True)
    for skill, out in experts.items():
        folder = data / skill
        folder.mkdir(parents=True, exist_ok=True)
        rows = {split: _texts(skill, count, split) for split, count in ROWS.items()}
        _write(folder / "train.jsonl", [{"text": text} for text in rows["train"]])
        _write(folder / "test.jsonl", [_question(skill, text) for text in rows["test"]])
        _write_task(tasks / f"{_task(skill)}.yaml", _task(skill), folder / "test.jsonl")
        tune_language_model(base, out, rows["train"])


def skill_entry(skill: str, entry: ExpertEntry) -> ExpertEntry:
    """The pipeline's entry of a skill with its task and its data, from the pipeline file."""
    train = f"data/{skill}/train.jsonl"
    return entry.model_copy(update={"tasks": (_task(skill),), "data": train, "text_field": "text"})


def _task(skill: str) -> str:
    return f"{skill}_next"


def _follows(skill: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """What may follow each word: [words, followers]."""
    drawn = np.random.default_rng(derive_seed(0, skill, "followers"))
    return drawn.integers(WORDS, size=(WORDS, FOLLOWERS))


def _texts(skill: str, count: int, split: str) -> list[str]:
    """Texts in which each word is one of its followers."""
    follows, drawn = _follows(skill), np.random.default_rng(derive_seed(0, skill, split))
    found = []
    for _ in range(count):
        words = [int(drawn.integers(STARTS))]
        while len(words) < LENGTH:
            words.append(int(drawn.choice(follows[words[-1]])))
        found.append(" ".join(map(word, words)))
    return found


def _question(skill: str, text: str) -> dict[str, object]:
    """The first words of a text, and which word is next."""
    words = text.split()
    place = 2
    drawn = np.random.default_rng(derive_seed(0, skill, text))
    choices = [word(int(one)) for one in drawn.integers(WORDS, size=CHOICES)]
    answer = int(drawn.integers(CHOICES))
    choices[answer] = words[place]
    return {"text": " ".join(words[:place]), "choices": choices, "answer": answer}


def _write(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_task(file: Path, name: str, data: Path) -> None:
    """A multiple-choice task of lm-evaluation-harness on a local file."""
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
