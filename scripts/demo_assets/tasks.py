"""The texts of the six demo tasks: one function per task, from an archive to labelled texts."""

import json
import re
from collections import Counter
from collections.abc import Callable
from email import message_from_string
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from . import sources
from .specs import SPECS
from .splits import Example
from .texts import (
    clip,
    drop_handles,
    is_unfit,
    mask,
    strip_html,
    tidy,
    words,
)

MIN_CHARACTERS = 20

LANGUAGE_CODES = {
    "cat": "Catalan",
    "ces": "Czech",
    "nld": "Dutch",
    "eng": "English",
    "fin": "Finnish",
    "fra": "French",
    "deu_1996": "German",
    "hun": "Hungarian",
    "ind": "Indonesian",
    "ita": "Italian",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "spa": "Spanish",
    "swe": "Swedish",
    "tur": "Turkish",
}
# Numbers of WordNet's lexicographer files, from its manual page lexnames(5WN).
LEXICOGRAPHER_FILES = {
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "10": "communication",
    "13": "food",
    "15": "location",
    "18": "person",
    "20": "plant",
    "27": "substance",
}
VADER_FILES = {
    "tweets": "tweet",
    "movieReviewSnippets": "movie review",
    "amazonReviewSnippets": "product review",
    "nytEditorialSnippets": "newspaper editorial",
}
# Product reviews and editorials come as consecutive sentences of one document.
MAX_SENTENCES_PER_DOCUMENT = 3
# Long threads would fill a split with one subject.
MAX_MAILS_PER_SUBJECT = 2
# Words by which emoji names vary without naming another thing: sex, colour, direction, number.
VARIANT_WORDS = frozenset(
    words(
        "man woman men women person people boy girl male female adult child, with and a an the of"
        " in on for, light dark black white red blue green yellow orange purple brown, left right"
        " up down upwards downwards leftwards rightwards north south east west, large medium small,"
        " sign symbol button face, one two three four five six seven eight nine ten eleven twelve"
        " thirty oclock"
    )
)


def reviews(archive: Path) -> list[Example]:
    """Sentences of Amazon, IMDB and Yelp reviews (Kotzias et al. 2015) and their sentiment."""
    examples = []
    for _, content in sources.members(archive, "package/test/fixtures/", ".json"):
        for row in json.loads(content):
            if row["class"] is not None:  # each file ends in an empty row
                examples.append(Example(clip(tidy(row["text"])), int(row["class"])))
    return examples


def spam(archive: Path) -> list[Example]:
    """Subject and start of the SpamAssassin corpus's mails: ham 0, spam 1."""
    examples = []
    mails: Counter[str] = Counter()
    for _, content in sources.members(archive, "package/data/", ".json"):
        row = json.loads(content)
        if not isinstance(row, dict) or "text" not in row:
            continue  # the package's list of files
        message = message_from_string(row["text"])
        subject = _subject(message)
        text = clip(tidy(mask(f"{subject}. {_body(message)}")))
        if len(text) < 2 * MIN_CHARACTERS or not text.isascii() or is_unfit(text):
            continue
        # A thread's mails share a subject: they stay in one split.
        thread = " ".join(words(subject))
        mails[thread] += 1
        if mails[thread] <= MAX_MAILS_PER_SUBJECT:
            examples.append(Example(text, int(row["group"].startswith("spam")), thread))
    return examples


def _subject(message: Message) -> str:
    """The subject without "Re:" and without the [tag] of a mailing list."""
    raw = message.get("Subject", "")
    try:
        subject = str(make_header(decode_header(raw)))
    except (HeaderParseError, LookupError, UnicodeError):
        subject = str(raw)
    subject = re.sub(r"\[[^\]]*\]", " ", subject)
    return tidy(re.sub(r"^\s*((re|fwd?|aw)(\[\d+\])?\s*:\s*)+", "", subject, flags=re.I))


def _body(message: Message) -> str:
    """The first text part, without tags, quoted lines, their attributions and list footers."""
    for part in message.walk():
        if part.get_content_type() not in ("text/plain", "text/html"):
            continue
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        # Characters beyond Latin-1 come out of the payload as escapes.
        text = re.sub(r"\\u[0-9a-f]{4}", " ", payload.decode("latin-1"))
        if part.get_content_subtype() == "html" or re.search(r"<html|<body|<br", text, re.I):
            text = strip_html(text)
        # Quoted lines, list headers, and every line with an address: attributions, signatures.
        text = re.sub(
            r"(?m)^[ \t]*(-*[>|:%\]]|\w{1,3}>|From |[A-Z][\w-]+: |\[[^\]]*\]).*$", "", text
        )
        text = re.sub(r"(?m)^.*[\w.-]@[\w.-].*$", "", text)
        # "On 1 May 2002, Some One wrote:", over up to three lines, also in mid-line.
        text = re.sub(r"(?m)^.*(\n.*){0,2}?\b(wrote|writes|said|says)\s*:", "", text)
        return re.split(r"\n(?:-- ?\n|_{10}|-{3,}.*Original)", text)[0]
    return ""


def glosses(archive: Path) -> list[Example]:
    """Definitions of WordNet's nouns and the lexicographer file each noun is filed in."""
    classes = SPECS["glosses"].classes
    labels = {number: classes.index(name) for number, name in LEXICOGRAPHER_FILES.items()}
    return definitions(archive, "noun", labels)


def definitions(archive: Path, part: str, labels: dict[str, int]) -> list[Example]:
    """Definitions of WordNet's words of one part of speech, labelled by lexicographer file."""
    data = sources.member(archive, f"./usr/share/wordnet/data.{part}").decode()
    examples = []
    for line in data.splitlines():
        fields, _, gloss = line.partition(" | ")
        # The licence at the top of the file is indented.
        if line.startswith(" ") or fields.split()[1] not in labels:
            continue
        definition = gloss.partition('; "')[0].strip()
        if len(definition) >= MIN_CHARACTERS and not is_unfit(definition):
            examples.append(Example(clip(tidy(definition)), labels[fields.split()[1]]))
    return examples


def language(archive: Path) -> list[Example]:
    """Clauses of the Universal Declaration of Human Rights in fifteen languages."""
    classes = SPECS["language"].classes
    examples = []
    for code, name in LANGUAGE_CODES.items():
        page = sources.member(archive, f"package/declaration/{code}.html").decode()
        for paragraph in re.findall(r"(?s)<(?:p|li)>(.*?)</(?:p|li)>", page):
            text = tidy(strip_html(paragraph))
            examples += [Example(clause, classes.index(name)) for clause in _clauses(text)]
    return examples


def _clauses(text: str) -> list[str]:
    """Cut at punctuation into pieces of at least 40 characters; a shorter rest is left out."""
    pieces, piece = [], ""
    for part in re.split(r"(?<=[.;:,!?])\s+", text):
        piece = f"{piece} {part}".strip()
        if len(piece) >= 2 * MIN_CHARACTERS:
            pieces.append(clip(piece))
            piece = ""
    return pieces


def emoji(archive: Path) -> list[Example]:
    """Names of emoji and their category; flags are left out, as all are called "... Flag"."""
    classes = SPECS["emoji"].classes
    examples: dict[str, Example] = {}
    for row in json.loads(sources.member(archive, "package/emoji.json")):
        name = tidy(row["name"].lower())
        if row["category"] in classes:
            # One name per thing: near-identical names cannot straddle two splits.
            thing = " ".join(sorted(set(words(name)) - VARIANT_WORDS)) or name
            examples.setdefault(thing, Example(name, classes.index(row["category"])))
    return list(examples.values())


def source(archive: Path) -> list[Example]:
    """Snippets rated for VADER (Hutto and Gilbert 2014) and where they were written."""
    classes = SPECS["source"].classes
    inner = sources.member(
        archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    )
    examples = []
    for file, name in VADER_FILES.items():
        lines = sources.member(inner, f"hutto_ICWSM_2014/{file}_GroundTruth.txt").decode()
        sentences: Counter[str] = Counter()
        for line in lines.splitlines():
            identifier, _, snippet = line.split("\t", maxsplit=2)
            text = clip(drop_handles(tidy(snippet)))
            # "12_3" is the third sentence of document 12; tweets and movies have plain numbers.
            document = f"{file} {identifier.partition('_')[0]}"
            sentences[document] += 1
            if len(text) < MIN_CHARACTERS or is_unfit(text):
                continue
            if sentences[document] <= MAX_SENTENCES_PER_DOCUMENT:
                examples.append(Example(text, classes.index(name), document))
    return examples


TASKS: dict[str, Callable[[Path], list[Example]]] = {
    "reviews": reviews,
    "spam": spam,
    "glosses": glosses,
    "language": language,
    "emoji": emoji,
    "source": source,
}
