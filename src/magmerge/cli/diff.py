"""magmerge diff: compare two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json


def command(
    a: Annotated[Path, typer.Argument(help="A model folder or file.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same architecture.")],
    ignore: Annotated[
        list[str], typer.Option("--ignore", help="Leave out tensors of this name (wildcards).")
    ] = [],
    threads: o.Threads = None,
    json: o.Json = False,
) -> None:
    """Compare two checkpoints tensor by tensor: norm of the difference, relative size, cosine."""
    from dataclasses import asdict

    import magmerge
    from magmerge.report.tables import difference_table, plain

    with progress_reporter() as progress:
        found = magmerge.diff(a, b, ignore=ignore, threads=threads, progress=progress)
    if json:
        show_json([asdict(one) for one in found])
        return
    equal = sum(one.difference == 0 for one in found)
    show(difference_table(found), plain(f"{len(found)} tensors, {equal} of them equal", "bold"))
