"""magmerge convert: an adapter from one naming to another, a whole model to safetensors."""

from __future__ import annotations

from dataclasses import asdict

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.report.conversion_text import conversion_text


def command(options: o.Options) -> None:
    """Write an adapter under another program's names, or a whole model as safetensors."""
    with progress_reporter() as progress:
        conversion = magmerge.convert(**o.without(options), progress=progress)
    if options["json"]:
        show_json({**asdict(conversion), "path": str(conversion.path)})
        return
    show(*conversion_text(conversion))
