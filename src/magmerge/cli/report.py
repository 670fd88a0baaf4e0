"""magmerge report: write what a calibration did as a page to read."""

from __future__ import annotations

from pathlib import Path

from magmerge.cli import options as o
from magmerge.cli.output import show, show_json


@o.takes(
    o.Option(
        "checkpoint", Path, "A folder or .safetensors file that magmerge wrote.", argument=True
    ),
    o.Option("scores", list[Path], "Output of `magmerge evaluate --json` to show; repeat.", []),
    o.Option("out", Path, "The page to write. Default: report.html in the checkpoint.", None),
    "overwrite",
    "json",
)
def command(options: o.Options) -> None:
    """Write report.html: recipe, factors and magnitudes of every layer, as one page of plots."""
    import magmerge
    from magmerge.core.dtypes import spoken_size
    from magmerge.report.terminal_tables import plain

    path = magmerge.write_report(**o.without(options))
    size = path.stat().st_size
    if options["json"]:
        show_json({"path": str(path), "size": size})
        return
    show(plain(f"wrote {path} ({spoken_size(size)})", "bold"))
