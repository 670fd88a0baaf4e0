"""magmerge demo: the demo's table."""

from __future__ import annotations

import time
from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Merge and calibrate six real experts of a MiniLM encoder, and measure every model."""
    start = time.monotonic()
    from magmerge.studies.demo.demonstration import demo_notes, demo_table

    with progress_reporter() as progress:
        demo = magmerge.demo(**o.without(options), progress=progress)
    seconds = time.monotonic() - start
    if options["json"]:
        rows = [{**asdict(row), "average": row.average} for row in demo.rows]
        paths = {"path": str(demo.path), "report": str(demo.report)}
        show_json({**asdict(demo), "rows": rows, **paths, "seconds": seconds})
        return
    show(
        plain(""),
        demo_table(demo),
        plain(""),
        *(plain(note, "dim") for note in demo_notes(demo)),
        plain(f"Wrote {demo.written} to {demo.path} ({seconds:.0f} s in all). Load it with"),
        plain(f'  transformers.AutoModel.from_pretrained("{demo.path}")', "bold"),
        plain(f"and see what was done to each layer in {demo.report}"),
    )
