"""Models side by side as one HTML page that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from magmerge.core.errors import printable_lines
from magmerge.report.svg import PAGE_STYLE

STYLE = """
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.answers > div { border-top: 3px solid var(--rule); padding-top: 0.4rem; }
.answers h3 { margin: 0; font-size: 0.875rem; font-weight: 650; color: var(--muted); }
.answers p { margin: 0.2rem 0 0; white-space: pre-wrap; }
.answers .merged { border-color: var(--series-1); }
.answers .other { border-color: var(--series-2); }
.prompt { font-size: 1rem; white-space: pre-wrap; }
main { max-width: 80rem; }
"""


def side_by_side_page(document: Mapping[str, Any]) -> str:
    """The page of `SideBySide.document()`: every prompt, and below it what each model says."""
    models = [_text(name) for name in document["models"]]
    parts = [_prompt(row, models[-1]) for row in document["prompts"]]
    count = len(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="generator" content="magmerge">\n<link rel="icon" href="data:,">\n'
        f"<title>Side by side</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n"
        '<main>\n<header>\n<p class="eyebrow">magmerge · side by side</p>\n'
        f"<h1>{count} prompt{'' if count == 1 else 's'}, {len(models)} models</h1>\n"
        f'<p class="lead">{_text(_sentence(document["text"]))} Where an expert says something else '
        "than the merged model, its answer is marked.</p>\n</header>\n"
        f"{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _prompt(row: Mapping[str, Any], merged: str) -> str:
    other = set(row["differs"])
    answers = "".join(
        f'<div class="{"merged" if _text(name) == merged else "other" if name in other else ""}">'
        f"<h3>{_text(name)}{' (differs)' if name in other else ''}</h3>"
        f"<p>{_text(answer) or '–'}</p></div>"  # noqa: RUF001
        for name, answer in row["answers"].items()
    )
    own = f'<p class="eyebrow">a prompt of {_text(row["expert"])}</p>' if row["expert"] else ""
    return (
        f'<section>\n{own}<h2 class="prompt">{_text(row["prompt"])}</h2>\n'
        f'<div class="answers">{answers}</div>\n</section>\n'
    )


def _text(text: object) -> str:
    return html.escape(printable_lines(str(text)))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
