"""magmerge inspect: list a checkpoint's tensors."""

from __future__ import annotations

from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import show, show_json
from magmerge.core.dtypes import spoken_size
from magmerge.report.terminal_tables import checkpoint_table, plain


def command(options: o.Options) -> None:
    """List a checkpoint's tensors: shapes, dtypes, kinds and sizes, from its headers."""
    info = magmerge.inspect(options["checkpoint"])
    if options["json"]:
        show_json(asdict(info))
        return
    total = f"{len(info.tensors)} tensors, {info.parameters:,} values, {spoken_size(info.size)}"
    show(checkpoint_table(info), plain(f"{total} in {', '.join(info.files)}", "bold"))
