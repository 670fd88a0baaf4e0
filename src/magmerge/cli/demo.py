"""magmerge demo: the demo's table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json


def command(
    out: Annotated[Path, typer.Argument(help="Where the calibrated merge is written.")] = Path(
        "magmerge-demo"
    ),
    threads: o.Threads = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Merge and calibrate six real experts of a MiniLM encoder, and measure every model."""
    from dataclasses import asdict

    start = time.monotonic()
    import magmerge
    from magmerge.report.tables import demo_notes, demo_table, plain

    with progress_reporter() as progress:
        found = magmerge.demo(out, overwrite=yes, threads=threads, progress=progress)
    seconds = time.monotonic() - start
    if json:
        rows = [{**asdict(row), "average": row.average} for row in found.rows]
        paths = {"path": str(found.path), "report": str(found.report)}
        show_json({**asdict(found), "rows": rows, **paths, "seconds": seconds})
        return
    show(
        plain(""),
        demo_table(found),
        plain(""),
        *(plain(note, "dim") for note in demo_notes(found)),
        plain(f"Wrote {found.written} to {found.path} ({seconds:.0f} s in all). Load it with"),
        plain(f'  transformers.AutoModel.from_pretrained("{found.path}")', "bold"),
        plain(f"and see what was done to each layer in {found.report}"),
    )
