"""magmerge merge: merge experts, write a checkpoint."""

from __future__ import annotations

import time

from magmerge.cli import options as o
from magmerge.cli import sampling as s
from magmerge.cli.memory import return_memory_at_once
from magmerge.cli.output import progress_reporter
from magmerge.cli.summary import show_result


def command(
    out: o.Out,
    expert: o.Expert,
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
    """Merge experts that share a base, and write an ordinary checkpoint.

    Example: magmerge merge --base B --expert E1 --expert E2 --method ties --calibrate wsc OUT
    """
    arguments = o.merge_arguments(locals())
    import magmerge

    return_memory_at_once()
    start = time.monotonic()
    with progress_reporter() as progress:
        result = magmerge.merge(**arguments, progress=progress)
    show_result(result, time.monotonic() - start, as_json=json, verbose=verbose)
