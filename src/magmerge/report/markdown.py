"""Texts of others in Markdown: nothing in them is markup, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from magmerge.core.errors import printable

PLAIN = frozenset(" -.,+()/=%'\";?")
"""What is no markup inside a line. Neither is `_` between letters, nor `:` before a space."""
AUTOLINKED = re.compile(r"(?i)www\.")
LEADING = re.compile(r"[-+=]|[0-9]{1,9}[.)](?= |$)")
"""What would begin a list or a rule at the beginning of a line."""
RUN = re.compile("`+")


def inline(text: str) -> str:
    """The text inside a line: no links, no emphasis, no HTML, no end of a table's cell."""
    text = printable(" ".join(text.split()))
    text = _escaped(text)
    if (lead := LEADING.match(text)) is not None:
        text = f"{lead[0][:-1]}&#{ord(lead[0][-1])};{text[lead.end() :]}"
    return text.strip()


def _escaped(text: str) -> str:
    text = AUTOLINKED.sub(lambda found: f"{found[0][:-1]}\0", text)
    return "".join(_character(text, place) for place in range(len(text)))


def _character(text: str, place: int) -> str:
    letter = text[place]
    if letter == "_":
        sides = text[place - 1 : place], text[place + 1 : place + 2]
        if all(side.isalnum() for side in sides):
            return letter
    if letter == ":" and text[place + 1 : place + 2] in ("", " "):
        return letter
    if letter == "\0":
        return "&#46;"
    return letter if letter.isalnum() or letter in PLAIN else f"&#{ord(letter)};"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever is in it."""
    longest = max((len(run) for run in RUN.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
