"""The seeing half of a CLIP model, which is what vision pipelines merge, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.renamed import RenamedCheckpoint
from magmerge.checkpoints.staging import Staging
from magmerge.errors import CheckpointError
from magmerge.live.building import quiet_transformers
from magmerge.models import Checkpoint
from magmerge.pipeline import merge
from magmerge.reproduction.models import aligned

ENCODER, PROJECTION = "vision_model.", "visual_projection.weight"
"""What the names of a CLIP's seeing half begin with, and its last layer."""
DONATED = ("preprocessor_config.json", "processor_config.json")
HALF = frozenset({"config.json", "model.safetensors", "model.magmerge.json", *DONATED})
"""What the folder of a seeing half holds."""


def projects(base: Path, experts: Mapping[str, Path]) -> bool:
    """Whether every expert has the last layer of a CLIP's seeing half."""
    origin = open_checkpoint(base)
    return all(PROJECTION in aligned(path, origin).specs for path in experts.values())


def seeing_half(base: Path, out: Path, *, projected: bool, anew: bool) -> Path:
    """The vision model of a whole CLIP model, as a folder of its own.

    With its projection if `projected`. A folder that was made before is taken as it is, but for
    `anew`. Raises CheckpointError for other models, OutputError where `out` holds other things.
    """
    opened = open_checkpoint(base)
    if PROJECTION not in opened.specs:
        raise CheckpointError(
            f"it is no CLIP model in Hugging Face's naming: it has no {PROJECTION}",
            source=base,
            remedy="give the base as transformers has it, such as openai/clip-vit-base-patch32",
        )
    names = [name for name in opened.specs if name.startswith(ENCODER)]
    names += [PROJECTION] if projected else []
    if not anew and out.is_dir() and set(open_checkpoint(out).specs) == set(names):
        return out
    half = RenamedCheckpoint(opened, {name: name for name in names})
    with Staging(out, single=False, overwrite=True, own=HALF) as staging:
        _write_half(base, half, staging.folder)
        staging.publish()
    return out


def _write_half(base: Path, half: Checkpoint, folder: Path) -> None:
    kind = "CLIPVisionModelWithProjection" if PROJECTION in half.specs else "CLIPVisionModel"
    with quiet_transformers() as library:
        whole = library.AutoConfig.from_pretrained(base, local_files_only=True)
        seeing = whole.vision_config
        seeing.projection_dim = whole.projection_dim
        seeing.architectures = [kind]
        seeing.save_pretrained(folder)
    # An average of one is the model itself, written as every result is.
    merge(experts={"base": half}, method="average", out=folder / "model.safetensors")
    for name in DONATED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
