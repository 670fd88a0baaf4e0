"""magmerge calibrate: repair a merge that any tool made."""

from __future__ import annotations

from magmerge.cli import options as o
from magmerge.cli.merge_result import write_result


def command(options: o.Options) -> None:
    """Calibrate the layer-wise magnitude of a merged model, given its base and experts."""
    write_result("calibrate", options)
