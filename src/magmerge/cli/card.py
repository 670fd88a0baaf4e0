"""magmerge card: the model card of a folder that magmerge wrote."""

from __future__ import annotations

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json, show_text
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Print a result's model card, made from its record, or write it anew with its scores."""
    text = magmerge.card(**o.without(options))
    path = options["checkpoint"] / "README.md"
    if options["json"]:
        show_json({"path": str(path) if options["write"] else None, "card": text})
    elif options["write"]:
        show(plain(f"wrote {path}", "bold"))
    else:
        show_text(text)
