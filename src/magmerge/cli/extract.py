"""magmerge extract: make a LoRA adapter out of a fine-tuned model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.errors import ParameterError


def command(
    out: Annotated[
        Path,
        typer.Argument(
            help="A folder; one file that ends in .safetensors with another --format than peft.",
            show_default=False,
        ),
    ],
    base: Annotated[Path, typer.Option("--base", help="The model that MODEL was tuned from.")],
    model: Annotated[Path, typer.Option("--model", help="The fine-tuned model.")],
    rank: Annotated[
        str, typer.Option("--rank", help="Of every module: a number, or auto (with --energy).")
    ] = "16",
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            help="Share of each module's squared norm that --rank auto keeps. Default: 0.99.",
        ),
    ] = None,
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            help="Adapt tensors or modules of this name (wildcards), no others; repeat. "
            "Default: all linear layers and convolutions, no embeddings, no heads.",
        ),
    ] = [],
    ignore: Annotated[
        list[str],
        typer.Option(
            "--ignore", help="Leave out tensors of this name (wildcards) altogether; repeat."
        ),
    ] = [],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Of the factors: float32, bfloat16, float16. Default: as most of the base.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="How modules are named: peft (a folder, the default), diffusers, kohya, ...",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Layers at work at once. Default: all cores.")
    ] = None,
    memory: o.Memory = "2GB",
    yes: o.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Make a LoRA adapter out of a fine-tuned model, and say how near it comes to the model.

    Example: magmerge extract --base B --model M --rank 16 OUT
    """
    if energy is not None and rank != "auto":
        raise ParameterError(
            f"--energy has no meaning with --rank {rank}", remedy="add --rank auto, or drop it"
        )
    import magmerge
    from magmerge.report.adapter_table import extraction_lines, extraction_table

    start = time.monotonic()
    with progress_reporter() as progress:
        found = magmerge.extract(
            base=base,
            model=model,
            out=out,
            rank=rank,  # type: ignore[arg-type]
            energy=0.99 if energy is None else energy,
            targets=target,
            ignore=ignore,
            dtype=dtype,
            naming=format,  # type: ignore[arg-type]
            overwrite=yes,
            threads=threads,
            memory=memory,
            progress=progress,
        )
    if json:
        show_json({**found.document(), "path": str(found.path)})
        return
    show(
        extraction_table(found.modules, whole=verbose),
        *extraction_lines(found, time.monotonic() - start),
    )
