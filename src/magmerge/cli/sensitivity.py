"""magmerge sensitivity: rank layers by what more of the average merge does to a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json


@o.takes(
    o.option("out", help="A JSON file, which --sensitive takes."),
    o.option("base", help="The model the experts were tuned from.", default=...),
    "experts",
    o.Option("data", str, "Samples of a generic data set."),
    o.Option(
        "score",
        str,
        "drift: of the last features, without labels. loss: of labels, or of next tokens. "
        "accuracy: the share of errors.",
        "drift",
    ),
    o.Option("mode", str, "exact: try every layer. fast: take derivatives.", "exact"),
    o.Option("alpha", int, "How many layers are sensitive.", 10),
    o.Option("samples", int, "How many are drawn.", 64),
    "seed",
    o.Option("label_field", str, "The column that holds the labels.", None),
    o.Option("head", Path, "A file with weight and bias of a classifier.", None),
    o.Option("features", str, "What the head takes: mean, cls, pooler, output.", "output"),
    *o.PREPARATION,
    "ignore",
    "model",
    "build",
    "threads",
    "device",
    "overwrite",
    "json",
    "verbose",
)
def command(options: o.Options) -> None:
    """Find the layers that 10 % more of the average merge's change hurts most.

    Example: magmerge sensitivity --base B --expert E1 --expert E2 --data texts.jsonl OUT.json
    """
    keywords = o.without(options, *(item.name for item in o.SAMPLES))
    keywords["samples"] = o.sample_keywords(options)
    import magmerge

    start = time.monotonic()
    with progress_reporter() as progress:
        ranking = magmerge.sensitivity(**keywords, progress=progress)
    seconds = time.monotonic() - start
    if options["json"]:
        path = str(options["out"])
        show_json({**ranking.document(), "path": path, "seconds": seconds})
        return
    _show(ranking, options, seconds)


def _show(ranking: Any, options: o.Options, seconds: float) -> None:
    from magmerge.report.terminal_tables import plain, sensitivity_table

    out, of = options["out"], f"{options['score']}, {options['mode']}"
    left = f"; not ranked: {', '.join(ranking.unranked)}" if ranking.unranked else ""
    show(
        sensitivity_table(ranking.layers, ranking.sensitive, whole=options["verbose"]),
        plain(f"{of}, {len(ranking.layers)} layers on {ranking.samples} samples{left}", "bold"),
        plain(f"  wrote {out} in {seconds:.1f} s; pass it on with --sensitive {out}"),
    )
