"""magmerge sensitivity: rank layers by what more of the average merge does to a data set."""

from __future__ import annotations

import time
from typing import Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.report.terminal_tables import plain, sensitivity_table


def command(options: o.Options) -> None:
    """Find the layers that 10 % more of the average merge's change hurts most."""
    keywords = o.without(options, *o.PREPARATION)
    keywords["samples"] = o.sample_keywords(options)
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
    out, of = options["out"], f"{options['score']}, {options['mode']}"
    left = f"; not ranked: {', '.join(ranking.unranked)}" if ranking.unranked else ""
    show(
        sensitivity_table(ranking.layers, ranking.sensitive, whole=options["verbose"]),
        plain(f"{of}, {len(ranking.layers)} layers on {ranking.samples} samples{left}", "bold"),
        plain(f"  wrote {out} in {seconds:.1f} s; pass it on with --sensitive {out}"),
    )
