"""magmerge merge: merge experts, write a checkpoint."""

from __future__ import annotations

from magmerge.cli import options as o
from magmerge.cli.result import write_result


@o.takes(
    "out",
    "experts",
    "base",
    *o.METHOD,
    *o.CALIBRATION,
    *o.INPUTS,
    *o.MACHINE,
    *o.ADAPTER,
    *o.OUTPUT,
)
def command(options: o.Options) -> None:
    """Merge experts that share a base, and write an ordinary checkpoint.

    Example: magmerge merge --base B --expert E1 --expert E2 --method ties --calibrate wsc OUT
    """
    write_result("merge", options)
