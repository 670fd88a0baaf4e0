"""The skills of both language suites: four that are distinct, and four that overlap."""

from functools import partial

from scripts.demo_assets import sources, tasks

from .language_tasks import Skill
from .packages import fetch
from .text_tasks import TextTask, text_tasks

DEFINITION = "Definition: {}\nCategory:"
WORDNET_PARTS = {
    "nature": (
        "Things of nature, by their definitions",
        "noun",
        {"05": "animal", "08": "body", "13": "food", "20": "plant", "27": "substance"},
    ),
    "culture": (
        "Things of culture, by their definitions",
        "noun",
        {"04": "act", "06": "artifact", "10": "communication", "15": "location", "18": "person"},
    ),
    "deeds": (
        "What bodies do, by its definitions",
        "verb",
        {"29": "body", "35": "contact", "36": "creation", "38": "motion", "39": "perception"},
    ),
    "minds": (
        "What minds do, by its definitions",
        "verb",
        {
            "31": "thought", "32": "communication", "33": "competition", "37": "emotion",
            "40": "possession",
        },
    ),
}  # fmt: skip
"""Title, part of speech, and the answer for each of WordNet's lexicographer files."""


def distinct() -> dict[str, Skill]:
    """Skills of different texts, prompts and answers."""
    found = text_tasks()
    return {
        "reviews": Skill(
            found["reviews"], "Review: {}\nSentiment:", [" negative", " positive"]
        ),
        "topics": Skill(
            found["topics"],
            "News: {}\nTopic:",
            [
                *(" acquisition", " crude", " earnings", " grain"),
                *(" interest", " currency", " shipping", " trade"),
            ],
        ),
        "glosses": Skill(
            found["glosses"],
            DEFINITION,
            [
                *(" act", " animal", " artifact", " body", " communication"),
                *(" food", " location", " person", " plant", " substance"),
            ],
        ),
        "source": Skill(
            found["source"], "Text: {}\nSource:", [" tweet", " film", " product", " newspaper"]
        ),
    }  # fmt: skip


def overlapping() -> dict[str, Skill]:
    """Skills of one prompt and one kind of text, the definitions of a dictionary.

    They differ in what is defined and in the answers.
    """
    found = {}
    for name, (title, part, files) in WORDNET_PARTS.items():
        answers = list(files.values())
        labels = {number: label for label, number in enumerate(files)}
        read = partial(definitions, part, labels)
        task = TextTask(title, sources.WORDNET, answers, read)
        found[name] = Skill(task, DEFINITION, [f" {answer}" for answer in answers])
    return found


def definitions(part: str, labels: dict[str, int]) -> list[tasks.Example]:
    """The definitions of one part of speech, labelled by lexicographer file."""
    return tasks.definitions(fetch(sources.WORDNET), part, labels)
