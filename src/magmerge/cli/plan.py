"""magmerge plan: say what a merge would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli import sampling as s
from magmerge.cli.output import print_warning, show, show_json
from magmerge.errors import MagmergeWarning


def command(
    expert: o.Expert,
    out: Annotated[
        Path | None, typer.Argument(help="Where the result would go; checked if given.")
    ] = None,
    base: o.Base = None,
    method: o.MergeMethod = "task_arithmetic",
    settings: o.Set = [],
    calibrate: o.Calibrate = [],
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
    rank: o.Rank = None,
    energy: o.Energy = None,
    format: o.Format = None,
    shard_size: o.ShardSize = "5GB",
    donor: o.Donor = None,
    yes: o.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Say what a merge would do, from headers alone, and find every structural fault.

    Takes the arguments of `magmerge merge`. Prints a row for each tensor.
    """
    arguments = o.merge_arguments(locals())
    import magmerge
    from magmerge.engine.plan import describe
    from magmerge.report.tables import plain, plan_summary, plan_table

    plan = magmerge.plan(**arguments)
    if json:
        show_json(describe(plan))
        return
    for warning in plan.warnings:
        print_warning(warning, MagmergeWarning)
    if verbose:
        show(plain(f"recipe {plan.digest}", "dim"))
    show(plan_table(plan), plan_summary(plan))
