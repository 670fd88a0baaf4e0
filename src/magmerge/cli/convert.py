"""magmerge convert: an adapter from one naming to another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import show, show_json


def command(
    adapter: Annotated[Path, typer.Argument(help="A LoRA file, or a PEFT folder.")],
    out: o.Out,
    format: Annotated[
        str,
        typer.Option("--format", help="peft (a folder), diffusers, kohya, kohya_ldm, kohya_flux."),
    ],
    dtype: o.Dtype = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Write a LoRA adapter under another program's names, with every task vector kept.

    Example: magmerge convert style.safetensors style-peft --format peft
    """
    import magmerge
    from magmerge.report.tables import plain

    done = magmerge.convert(adapter, out, naming=format, dtype=dtype, overwrite=yes)
    if json:
        show_json({**asdict(done), "path": str(done.path)})
        return
    show(plain(f"{done.modules} modules, {done.before} to {done.after}: wrote {done.path}"))
