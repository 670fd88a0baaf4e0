"""The seeing half of a CLIP model, which is what vision pipelines merge, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import CheckpointError
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.live.modules import quiet_transformers
from magmerge.pipeline.documents import run
from magmerge.studies.reproduction.pipeline_models import aligned

ENCODER, PROJECTION = "vision_model.", "visual_projection.weight"
"""What the names of a CLIP's seeing half begin with, and its last layer."""
DONATED = ("preprocessor_config.json", "processor_config.json")


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
    half = {name: opened.read(name) for name in names}
    with tempfile.TemporaryDirectory() as donor:
        _write_config(base, Path(donor), projected=projected)
        # One model as it is, written as every result is.
        recipe = Recipe(experts={"half": ENCODER}, output=ModelOutput(donor=donor))
        run(recipe, out, models={"half": half}, overwrite=True)
    return out


def _write_config(base: Path, folder: Path, *, projected: bool) -> None:
    kind = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    with quiet_transformers() as library:
        whole = library.AutoConfig.from_pretrained(base, local_files_only=True)
        seeing = whole.vision_config
        seeing.projection_dim = whole.projection_dim
        seeing.architectures = [kind]
        seeing.save_pretrained(folder)
    for name in DONATED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
