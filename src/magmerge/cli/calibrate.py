"""magmerge calibrate: repair a merge that any tool made."""

from __future__ import annotations

from pathlib import Path

from magmerge.cli import options as o
from magmerge.cli.merge_result import write_result

MERGED = o.Option("merged", Path, "The merged model, made by any tool.", argument=True)


@o.takes(
    MERGED,
    "out",
    o.option("base", help="The model the experts were tuned from.", default=...),
    "experts",
    o.option("method", help="The calibrator.", default="wsc"),
    "settings",
    *o.CALIBRATION,
    *o.INPUTS,
    *o.MACHINE,
    *o.OUTPUT,
    "resume",
)
def command(options: o.Options) -> None:
    """Calibrate the layer-wise magnitude of a merged model, given its base and experts.

    Example: magmerge calibrate MERGED --base B --expert E1 --expert E2 --method wsc OUT

    From samples: magmerge calibrate MERGED --base B --expert E1 --expert E2 --method fsc
    --data E1=texts1.jsonl --data E2=texts2.jsonl OUT
    """
    write_result("calibrate", options)
