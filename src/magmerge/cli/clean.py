"""magmerge clean: what killed runs left, listed and removed."""

from __future__ import annotations

import time
from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json
from magmerge.report.terminal_tables import leftovers_table, plain


def command(options: o.Options) -> None:
    """List what runs left, and with --yes remove what none is at work on."""
    leftovers = magmerge.clean(options["place"], remove=options["remove"])
    if options["json"]:
        rows = [{**asdict(left), "path": str(left.path)} for left in leftovers]
        show_json([{**row, "output": row["output"] and str(row["output"])} for row in rows])
        return
    if not leftovers:
        show(plain("nothing was left here"))
        return
    told = "removed, but for what a run is at work on" if options["remove"] else ""
    remedy = told or f"magmerge clean {options['place']} --yes removes it"
    show(leftovers_table(leftovers, time.time()), plain(remedy, "bold"))
