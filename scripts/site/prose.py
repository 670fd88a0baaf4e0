"""Docstrings as Markdown: their plain formulas get subscripts, superscripts and Greek letters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

WHEN = "When: "
ARXIV = re.compile(r"(?:arXiv:)?(\d{4}\.\d{4,5})")
SUBSCRIPT = r"(?<![\w*\\.])([A-Za-z]|sum|mean|xi|unique|shared)_(jk|rk|[a-zK0-9])\b"
FORMULAS = (
    (re.compile(SUBSCRIPT), r"\1<sub>\2</sub>"),
    (re.compile(r"\|_F"), "|<sub>F</sub>"),
    (re.compile(r"\^(\(.+?\)|-?\w+)"), r"<sup>\1</sup>"),
    (re.compile(r"\bsum(?=<sub>)"), "Σ"),
    (re.compile(r"\bsqrt\("), "√("),
    (re.compile(r"\bxi\b"), "ξ"),
    (re.compile(r"\blambda\b"), "λ"),
    (re.compile(r"(?<=[\w)]) \* (?=[\w(])"), " · "),
    (re.compile(r"&gt;="), "≥"),
    (re.compile(r"&lt;="), "≤"),
    (re.compile(r"\+-"), "±"),
    (re.compile(r"([_*])"), r"\\\1"),
)


def paragraphs(fn: Callable[..., Any]) -> tuple[str, list[str], str]:
    """Of a docstring: its first line, its further paragraphs, and when to take the function."""
    summary, *rest = (inspect.getdoc(fn) or "").split("\n\n")
    when = [part.removeprefix(WHEN) for part in rest if part.startswith(WHEN)]
    return summary, [part for part in rest if not part.startswith(WHEN)], "\n".join(when)


def markdown(text: str) -> str:
    """A paragraph of a docstring: code stays as it is, formulas are set."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _formulas(part) for part in parts)


def sentence(text: str) -> str:
    """`markdown` of a part of a sentence, with a capital letter and a full stop."""
    marked = markdown(text[:1].upper() + text[1:])
    return marked if marked.endswith((".", ":")) else f"{marked}."


def cell(text: str) -> str:
    """`markdown` within a table."""
    return markdown(text).replace("|", "&#124;").replace("\n", " ")


def source(text: str) -> str:
    """Where something is defined, with links to arXiv."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", markdown(text))


def _formulas(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for pattern, put in FORMULAS:
        text = pattern.sub(put, text)
    return text
