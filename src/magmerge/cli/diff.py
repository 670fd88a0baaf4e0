"""magmerge diff: compare two checkpoints."""

from __future__ import annotations

from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.report.terminal_tables import difference_table, plain


def command(options: o.Options) -> None:
    """Compare two checkpoints tensor by tensor: norm of the difference, relative size, cosine."""
    with progress_reporter() as progress:
        rows = magmerge.diff(**o.without(options), progress=progress)
    if options["json"]:
        show_json([asdict(row) for row in rows])
        return
    equal = sum(row.difference == 0 for row in rows)
    show(difference_table(rows), plain(f"{len(rows)} tensors, {equal} of them equal", "bold"))
