"""magmerge extract: make a LoRA adapter out of a fine-tuned model."""

from __future__ import annotations

import time
from pathlib import Path

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.errors import ParameterError


@o.takes(
    o.option(
        "out", help="A folder; one file that ends in .safetensors with another --format than peft."
    ),
    o.option("base", help="The model that MODEL was tuned from.", default=...),
    o.Option("model", Path, "The fine-tuned model."),
    o.option("rank", help="Of every module: a number, or auto (with --energy).", default="16"),
    o.option(
        "energy", help="Share of each module's squared norm that --rank auto keeps. Default: 0.99."
    ),
    o.Option(
        "targets",
        list[str],
        "Adapt tensors or modules of this name (wildcards), no others; repeat. "
        "Default: all linear layers and convolutions, no embeddings, no heads.",
        [],
        flags="--target",
    ),
    o.option("ignore", help="Leave out tensors of this name (wildcards) altogether; repeat."),
    o.option(
        "dtype", help="Of the factors: float32, bfloat16, float16. Default: as most of the base."
    ),
    o.option(
        "naming", help="How modules are named: peft (a folder, the default), diffusers, kohya, ..."
    ),
    o.option("threads", help="Layers at work at once. Default: all cores."),
    "memory",
    "overwrite",
    "json",
    "verbose",
)
def command(options: o.Options) -> None:
    """Make a LoRA adapter out of a fine-tuned model, and say how near it comes to the model.

    Example: magmerge extract --base B --model M --rank 16 OUT
    """
    rank, energy = options["rank"], options["energy"]
    if energy is not None and rank != "auto":
        raise ParameterError(
            f"--energy has no meaning with --rank {rank}", remedy="add --rank auto, or drop it"
        )
    import magmerge
    from magmerge.report.adapter_table import extraction_lines, extraction_table

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
