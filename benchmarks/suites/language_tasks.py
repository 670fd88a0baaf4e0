"""The language suites' skills: prompts that end where one word, the answer, is to follow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from scripts.demo_assets.splits import split
from scripts.demo_assets.texts import clip

from .text_tasks import TextTask

MAX_LENGTH = 64
LONGEST_TEXT = 220  # characters, before the cut to MAX_LENGTH tokens
SHORTENING = 0.9
SIZES = {"test": 250, "validation": 120, "calibration": 256, "train": 512}


class Prompt(NamedTuple):
    """A prompt without its answer, the answer's index, and the two together."""

    text: str
    label: int
    full: str


@dataclass(frozen=True)
class Skill:
    """How a task of labelled texts is put as a question."""

    task: TextTask
    template: str
    choices: list[str]
    """The answers by label, one token each."""


def read_skill(skill: Skill, tokenizer: Any) -> dict[str, list[Prompt]]:
    """Draw a skill's texts and make prompts of them, by split, that fit the length."""
    check_choices(skill, tokenizer)

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    return {
        part: [prompt(skill, example.text, example.label, tokens) for example in examples]
        for part, examples in split(skill.task.read(), SIZES, seed=0).items()
    }


def check_choices(skill: Skill, tokenizer: Any) -> None:
    """Raise ValueError unless the answers are single tokens and all different."""
    ids = [tokenizer(choice)["input_ids"] for choice in skill.choices]
    if any(len(found) != 1 for found in ids) or len({found[0] for found in ids}) != len(ids):
        raise ValueError(f"answers must be distinct single tokens: {skill.choices}, got {ids}")


def prompt(skill: Skill, text: str, label: int, tokens: Callable[[str], int]) -> Prompt:
    """Put one text as a question, cut at a word so that the answer fits too."""
    limit = LONGEST_TEXT
    while True:
        question = skill.template.format(clip(text, limit))
        full = question + skill.choices[label]
        if tokens(full) <= MAX_LENGTH:
            return Prompt(question, label, full)
        limit = int(limit * SHORTENING)
