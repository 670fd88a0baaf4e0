"""From found models to what can be merged: the base's own half of CLIP, experts under its names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.own_files import check_replaceable
from magmerge.checkpoints.renamed import RenamedCheckpoint, align
from magmerge.errors import CheckpointError
from magmerge.evaluation.weights import Stored
from magmerge.live.modules import quiet_transformers
from magmerge.models import Checkpoint
from magmerge.pipeline import merge
from magmerge.suites.writing import MARK
from magmerge.whole_file import replace_whole

ENCODER, PROJECTION = "vision_model.", "visual_projection.weight"
"""What the names of a CLIP's seeing half begin with, and its last layer."""
DONATED = ("preprocessor_config.json", "processor_config.json")
HALF = frozenset({"config.json", "model.safetensors", "model.magmerge.json", *DONATED})
"""What the folder of a seeing half holds."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The base's folder, the experts under its names, and tensors that some expert lacks."""

    base: Path
    experts: Mapping[str, Checkpoint]
    lacking: tuple[str, ...]

    def weights_of_base(self) -> Mapping[str, Tensor]:
        """The base's tensors, each read when it is asked for."""
        return Stored(open_checkpoint(self.base))

    def weights(self, task: str) -> dict[str, Tensor]:
        """An expert's tensors by name, the base's where it has none."""
        mine, origin = Stored(self.experts[task]), self.weights_of_base()
        return {name: (mine if name in mine else origin)[name] for name in origin}


def ready(base: Path, experts: Mapping[str, Path]) -> Ready:
    """The experts under the base's names, without what the base does not have."""
    origin = open_checkpoint(base)
    found = {task: _aligned(path, origin) for task, path in experts.items()}
    lacking = {
        name for expert in found.values() for name in origin.specs if name not in expert.specs
    }
    return Ready(base, found, tuple(sorted(lacking)))


def projects(base: Path, experts: Mapping[str, Path]) -> bool:
    """Whether every expert has the last layer of a CLIP's seeing half."""
    origin = open_checkpoint(base)
    return all(PROJECTION in _aligned(path, origin).specs for path in experts.values())


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
    if out.is_dir():
        check_replaceable(out, HALF)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_half(base, RenamedCheckpoint(opened, {name: name for name in names}), staging)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def set_base(suite: Path, base: Path) -> None:
    """Let a suite file name another base, so that figures are drawn of what is merged here."""
    content = yaml.safe_load(suite.read_text(encoding="utf-8"))
    content["base"] = str(base.resolve())
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    replace_whole(suite, f"{MARK}\n{text}")


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


def _aligned(path: Path, origin: Checkpoint) -> Checkpoint:
    expert = align(open_checkpoint(path), origin)
    names = [name for name in expert.specs if name in origin.specs]
    if not names:
        raise CheckpointError(
            "none of its tensors has a name of the base's",
            source=path,
            remedy="check that it is a fine-tune of this base",
        )
    return RenamedCheckpoint(expert, {name: name for name in names})
