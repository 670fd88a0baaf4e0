"""magmerge methods: list methods and calibrators."""

from __future__ import annotations

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json
from magmerge.report.terminal_tables import catalog_table


def command(options: o.Options) -> None:
    """List every method and calibrator: parameters, defaults, source."""
    entries = magmerge.catalog()
    if options["json"]:
        show_json(entries)
        return
    show(catalog_table(entries, "method"), catalog_table(entries, "calibrator"))
