"""magmerge convert: an adapter from one naming to another, a whole model to safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json


def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="An adapter: a LoRA file, or a PEFT folder. Or a whole model: a folder or file, "
            "also a pickled object, of which nothing is run."
        ),
    ],
    out: o.Out,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of an adapter: peft (a folder), diffusers, kohya, kohya_ldm, kohya_flux. Of a "
            "CLIP model: hf_clip, open_clip, timm_clip. Default: a whole model keeps its names.",
        ),
    ] = None,
    dtype: o.Dtype = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Write an adapter under another program's names, or a whole model as safetensors.

    Example: magmerge convert style.safetensors style-peft --format peft
    Example: magmerge convert finetuned.pt finetuned.safetensors --format hf_clip
    """
    import magmerge
    from magmerge.report.conversion_text import conversion_text

    with progress_reporter() as progress:
        done = magmerge.convert(
            model, out, naming=format, dtype=dtype, overwrite=yes, progress=progress
        )
    if json:
        show_json({**asdict(done), "path": str(done.path)})
        return
    show(*conversion_text(done))
