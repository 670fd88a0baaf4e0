"""magmerge report: write what a calibration did as a page to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import show, show_json


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder or .safetensors file that magmerge wrote.")
    ],
    scores: Annotated[
        list[Path],
        typer.Option("--scores", help="Output of `magmerge evaluate --json` to show; repeat."),
    ] = [],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page to write. Default: report.html in the checkpoint."),
    ] = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Write report.html: recipe, factors and magnitudes of every layer, as one page of plots."""
    import magmerge
    from magmerge.dtypes import spoken_size
    from magmerge.report.tables import plain

    path = magmerge.write_report(checkpoint, out, scores, overwrite=yes)
    size = path.stat().st_size
    if json:
        show_json({"path": str(path), "size": size})
        return
    show(plain(f"wrote {path} ({spoken_size(size)})", "bold"))
