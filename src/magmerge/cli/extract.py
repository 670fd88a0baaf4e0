"""magmerge extract: make a LoRA adapter out of a fine-tuned model."""

from __future__ import annotations

import time

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.errors import ParameterError
from magmerge.report.adapter_table import extraction_lines, extraction_table


def command(options: o.Options) -> None:
    """Make a LoRA adapter out of a fine-tuned model, and say how near it comes to the model."""
    rank, energy = options["rank"], options["energy"]
    if energy is not None and rank != "auto":
        raise ParameterError(
            f"--energy has no meaning with --rank {rank}", remedy="add --rank auto, or drop it"
        )
    keywords = {**o.without(options), "energy": 0.99 if energy is None else energy}
    start = time.monotonic()
    with progress_reporter() as progress:
        extraction = magmerge.extract(**keywords, progress=progress)
    if options["json"]:
        show_json({**extraction.document(), "path": str(extraction.path)})
        return
    show(
        extraction_table(extraction.modules, whole=options["verbose"]),
        *extraction_lines(extraction, time.monotonic() - start),
    )
