"""magmerge evaluate: measure a model on the tasks of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json


def command(
    model: Annotated[Path, typer.Argument(help="A model folder or file.")],
    suite: Annotated[
        Path, typer.Option("--suite", help="A suite file: tasks with data, heads and metrics.")
    ],
    split: Annotated[str, typer.Option("--split", help="Which split of the data.")] = "test",
    task: Annotated[
        list[str], typer.Option("--task", help="Only this task of the suite; repeat for more.")
    ] = [],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the forward pass: float32 or bfloat16.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", help="Batches at work at once. Default: all cores.")
    ] = None,
    device: o.Device = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the scores to this file, as JSON.")
    ] = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Measure a model on tasks: scores with 95 % intervals, and how near the experts they come.

    Example: magmerge evaluate MERGED --suite suite.yaml --split validation --out scores.json
    """
    import magmerge
    from magmerge.report.scores_table import scores_heading, scores_notes, scores_table
    from magmerge.report.tables import plain

    with progress_reporter() as progress:
        found = magmerge.evaluate(
            model,
            suite=suite,
            split=split,
            tasks=task or None,
            threads=threads,
            device=device,
            dtype=dtype,
            out=out,
            overwrite=yes,
            progress=progress,
        )
    if json:
        show_json(found.document())
        return
    notes = [plain(note, "dim") for note in scores_notes(found)]
    spent = plain(f"{found.seconds:.1f} s in all" + (f"; wrote {out}" if out else ""))
    show(plain(""), scores_heading(found), scores_table(found), plain(""), *notes, spent)
