"""magmerge sensitivity: rank layers by what more of the average merge does to a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli import sampling as s
from magmerge.cli.output import progress_reporter, show, show_json


def command(
    out: Annotated[Path, typer.Argument(help="A JSON file, which --sensitive takes.")],
    base: Annotated[Path, typer.Option("--base", help="The model the experts were tuned from.")],
    expert: o.Expert,
    data: Annotated[str, typer.Option("--data", help="Samples of a generic data set.")],
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="drift: of the last features, without labels. loss: of labels, or of next tokens. "
            "accuracy: the share of errors.",
        ),
    ] = "drift",
    mode: Annotated[
        str, typer.Option("--mode", help="exact: try every layer. fast: take derivatives.")
    ] = "exact",
    alpha: Annotated[int, typer.Option("--alpha", help="How many layers are sensitive.")] = 10,
    samples: Annotated[int, typer.Option("--samples", help="How many are drawn.")] = 64,
    seed: o.Seed = 0,
    text_field: s.TextField = None,
    label_field: Annotated[
        str | None, typer.Option("--label-field", help="The column that holds the labels.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option("--head", help="A file with weight and bias of a classifier.")
    ] = None,
    features: Annotated[
        str, typer.Option("--features", help="What the head takes: mean, cls, pooler, output.")
    ] = "output",
    max_length: s.MaxLength = None,
    image_size: s.ImageSize = None,
    mean: s.Mean = None,
    std: s.Std = None,
    split: s.Split = None,
    allow_test: s.AllowTest = False,
    ignore: o.Ignore = [],
    model_class: s.ModelClass = None,
    build: s.Build = None,
    threads: o.Threads = None,
    device: o.Device = "cpu",
    yes: o.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Find the layers that 10 % more of the average merge's change hurts most.

    Example: magmerge sensitivity --base B --expert E1 --expert E2 --data texts.jsonl OUT.json
    """
    given = locals()
    passed = ("base", "data", "score", "mode", "alpha", "seed", "label_field", "head", "features")
    arguments = {name: given[name] for name in (*passed, "ignore", "build", "threads", "device")}
    arguments |= {"experts": expert, "samples": s.sample_options(given), "model": model_class}
    arguments |= {"out": out, "overwrite": yes}
    import magmerge
    from magmerge.report.tables import plain, sensitivity_table

    start = time.monotonic()
    with progress_reporter() as progress:
        found = magmerge.sensitivity(**arguments, progress=progress)
    if json:
        show_json({**found.document(), "path": str(out), "seconds": time.monotonic() - start})
        return
    left = f"; not ranked: {', '.join(found.unranked)}" if found.unranked else ""
    show(
        sensitivity_table(found.layers, found.sensitive, whole=verbose),
        plain(
            f"{score}, {mode}, {len(found.layers)} layers on {found.samples} samples{left}", "bold"
        ),
        plain(
            f"  wrote {out} in {time.monotonic() - start:.1f} s; pass it on with --sensitive {out}"
        ),
    )
