"""magmerge inspect: list a checkpoint's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import show, show_json


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A model folder or file.")],
    json: o.Json = False,
) -> None:
    """List a checkpoint's tensors: shapes, dtypes, kinds and sizes, from its headers."""
    from dataclasses import asdict

    import magmerge
    from magmerge.dtypes import spoken_size
    from magmerge.report.tables import checkpoint_table, plain

    info = magmerge.inspect(checkpoint)
    if json:
        show_json(asdict(info))
        return
    total = f"{len(info.tensors)} tensors, {info.parameters:,} values, {spoken_size(info.size)}"
    show(checkpoint_table(info), plain(f"{total} in {', '.join(info.files)}", "bold"))
