"""What mkdocs calls at a build: pages that are made, and links that lead out of docs/.

mkdocs.yml names this file; mkdocs is run from the repository's root.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from scripts.site import links, python_page, stages

LOG = logging.getLogger("mkdocs.hooks.magmerge")
ROOT = Path(__file__).parents[2]
STAGES = stages.pages()


def on_config(config: MkDocsConfig) -> None:
    """Put a page for each method and calibrator into the navigation."""
    for entry in config.nav or []:
        for title in entry:
            own = sorted(path for path in STAGES if path.startswith(f"{title.lower()}/"))
            if own:
                entry[title] = sorted(own, key=lambda path: not path.endswith("/index.md"))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not files under docs/."""
    made = {**STAGES, "python.md": python_page.page()}
    for page, path in links.ROOT_PAGES.items():
        made[page] = (ROOT / path).read_text(encoding="utf-8")
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to files of the repository, as this site has them; one that leads nowhere is told."""
    path = page.file.src_uri
    if path in STAGES:
        return markdown
    written = links.ROOT_PAGES.get(path, f"docs/{path}")
    text, lost = links.on_site(links.with_pipes(markdown), written, ROOT)
    for target in lost:
        LOG.warning("%s links to %s, which is not there", written, target)
    return links.to_stages(text, STAGES) if path == "choose.md" else text
