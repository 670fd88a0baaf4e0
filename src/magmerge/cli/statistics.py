"""magmerge statistics: sums over what an expert's layers are fed, in place of its samples."""

from __future__ import annotations

import time

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import sources_by_expert
from magmerge.report.terminal_tables import plain, uncovered_lines


def command(options: o.Options) -> None:
    """Gather what RegMean needs of an expert's samples, into a file that can be given for them."""
    keywords = o.without(options, *o.PREPARATION)
    keywords["samples"] = o.sample_keywords(options)
    keywords["experts"] = o.experts_of(options)
    keywords["data"] = sources_by_expert(options["data"])
    start = time.monotonic()
    with progress_reporter() as progress:
        done = magmerge.statistics(**keywords, progress=progress)
    seconds = time.monotonic() - start
    if options["json"]:
        show_json({**done.document(), "seconds": seconds})
        return
    if options["verbose"]:
        show(*[plain(f"{name}  {tokens:,} tokens") for name, tokens in done.layers.items()])
    show(
        *uncovered_lines(done.uncovered),
        plain(f"{len(done.layers)} layers of {done.expert} on {done.samples} samples", "bold"),
        plain(f"  wrote {done.path} in {seconds:.1f} s; pass it on with --calibrate regmean "
              f"--statistics {done.expert}={done.path}"),
    )  # fmt: skip
