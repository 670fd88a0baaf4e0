"""magmerge convert: an adapter from one naming to another, a whole model to safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json

MODEL = o.Option(
    "model",
    Path,
    "An adapter: a LoRA file, or a PEFT folder. Or a whole model: a folder or file, also a pickled "
    "object, of which nothing is run.",
    argument=True,
)
FORMAT = o.option(
    "naming",
    help="Of an adapter: peft (a folder), diffusers, kohya, kohya_ldm, kohya_flux. Of a CLIP "
    "model: hf_clip, open_clip, timm_clip. Default: a whole model keeps its names.",
)


@o.takes(MODEL, "out", FORMAT, "dtype", "overwrite", "json")
def command(options: o.Options) -> None:
    """Write an adapter under another program's names, or a whole model as safetensors.

    Example: magmerge convert style.safetensors style-peft --format peft
    Example: magmerge convert finetuned.pt finetuned.safetensors --format hf_clip
    """
    import magmerge
    from magmerge.report.conversion_text import conversion_text

    with progress_reporter() as progress:
        conversion = magmerge.convert(**o.without(options), progress=progress)
    if options["json"]:
        show_json({**asdict(conversion), "path": str(conversion.path)})
        return
    show(*conversion_text(conversion))
