"""magmerge report: write what a calibration did as a page to read."""

from __future__ import annotations

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json
from magmerge.core.dtypes import spoken_size
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Write report.html: recipe, factors and magnitudes of every layer, as one page of plots."""
    path = magmerge.write_report(**o.without(options))
    size = path.stat().st_size
    if options["json"]:
        show_json({"path": str(path), "size": size})
        return
    show(plain(f"wrote {path} ({spoken_size(size)})", "bold"))
