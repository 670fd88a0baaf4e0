"""Links of the repository's Markdown files, as they are on the site."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable
from pathlib import Path

ROOT_PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files in the repository's root."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
PIPED = re.compile(r"`([^`|]*(?:\\\|[^`|]*)+)`")
"""Code within a table that holds a sign of its columns, as GitHub wants it written."""
IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")


def on_site(markdown: str, written: str, root: Path) -> tuple[str, list[str]]:
    """The text of the file `written`, a path from `root`, with its links as the site has them.

    Files of the repository that are no page there become plain text. Beside it the targets that
    are not in the repository; pages under docs/ are left to mkdocs.
    """
    lost: list[str] = []
    pages = {path: page for page, path in ROOT_PAGES.items()}

    def put(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(written), target))
        page = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is not None:
            return f"[{text}]({page}{anchor})"
        if not (root / path).exists():
            lost.append(target)
        return text if "`" in text else f"`{path}`"

    return LINK.sub(put, IMAGE.sub(r"\1", markdown)), lost


def to_stages(markdown: str, pages: Iterable[str]) -> str:
    """Names of methods and calibrators in code become links to their pages."""
    for path in pages:
        name = Path(path).stem
        markdown = re.sub(rf"(?<!\[)`{re.escape(name)}`", f"[`{name}`]({path})", markdown)
    return markdown


def with_pipes(markdown: str) -> str:
    """Code in tables that holds `|`, which Python's Markdown knows no way to write."""

    def put(found: re.Match[str]) -> str:
        code = found[1].replace("\\|", "|")
        plain = "".join(sign if sign.isalnum() else f"&#{ord(sign)};" for sign in code)
        return f"<code>{plain}</code>"

    lines = markdown.split("\n")
    return "\n".join(PIPED.sub(put, line) if line.startswith("|") else line for line in lines)
