"""magmerge push: send a written model to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.text import Text

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.dtypes import spoken_size
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Send a written model to the hub, with its card, recipe and record."""
    with progress_reporter() as progress:
        machine = magmerge.Machine(progress=progress)
        sent = magmerge.push(**o.without(options), machine=machine)
    if options["json"]:
        show_json({**asdict(sent), "size": sent.size})
    else:
        show(*lines(sent))


def lines(sent: Any) -> Iterator[Text]:
    """What was sent, or would be, and where it is."""
    for name, size in sent.files.items():
        yield plain(f"  {name}  {spoken_size(size)}")
    done = "would be sent" if sent.commit is None else "sent"
    kind = "private repository" if sent.private else "repository"
    count = f"{len(sent.files)} files, {spoken_size(sent.size)}"
    yield plain(f"{count}, {done} to the {kind} {sent.url}", "bold")
