"""magmerge calibrate: repair a merge that any tool made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli import sampling as s
from magmerge.cli.memory import return_memory_at_once
from magmerge.cli.output import progress_reporter
from magmerge.cli.summary import show_result


def command(
    merged: Annotated[Path, typer.Argument(help="The merged model, made by any tool.")],
    out: o.Out,
    base: Annotated[Path, typer.Option("--base", help="The model the experts were tuned from.")],
    expert: o.Expert,
    method: Annotated[str, typer.Option("--method", help="The calibrator.")] = "wsc",
    settings: o.Set = [],
    gate: o.Gate = "on",
    sensitive: o.Sensitive = None,
    skip: o.Skip = [],
    ignore: o.Ignore = [],
    dtype: o.Dtype = None,
    seed: o.Seed = 0,
    data: s.Data = [],
    samples: s.Samples = 8,
    text_field: s.TextField = None,
    max_length: s.MaxLength = None,
    image_size: s.ImageSize = None,
    mean: s.Mean = None,
    std: s.Std = None,
    split: s.Split = None,
    allow_test: s.AllowTest = False,
    order: s.Order = "once",
    precision: s.Precision = "float32",
    batchnorm: s.BatchNorm = False,
    offload: s.Offload = False,
    model_class: s.ModelClass = None,
    build: s.Build = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    shard_size: o.ShardSize = "5GB",
    donor: o.Donor = None,
    yes: o.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Calibrate the layer-wise magnitude of a merged model, given its base and experts.

    Example: magmerge calibrate MERGED --base B --expert E1 --expert E2 --method wsc OUT

    From samples: magmerge calibrate MERGED --base B --expert E1 --expert E2 --method fsc
    --data E1=texts1.jsonl --data E2=texts2.jsonl OUT
    """
    params, _ = o.parse_settings(settings, [], method)
    arguments = o.shared_arguments(locals())
    import magmerge

    return_memory_at_once()
    start = time.monotonic()
    with progress_reporter() as progress:
        result = magmerge.calibrate(
            merged,
            base=base,
            experts=expert,
            method=method,
            params=params,
            progress=progress,
            **arguments,
        )
    show_result(result, time.monotonic() - start, as_json=json, verbose=verbose)
