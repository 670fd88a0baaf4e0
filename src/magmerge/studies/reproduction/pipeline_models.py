"""A pipeline's base and experts: where they are, and how they are what can be merged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.experts import align
from magmerge.checkpoints.views import under_names
from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.core.extras import needed
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.evaluation.live_model import CheckpointTensors
from magmerge.live.modules import quiet_transformers
from magmerge.pipeline.documents import run
from magmerge.studies.reproduction.pipelines import Pipeline

FILES = ("", ".safetensors", ".pt", ".bin")
"""Endings that a model of a task's name may have; none for a folder."""
WITHIN = ("finetuned.pt", "nonlinear_finetuned.pt")
"""Files that whole pickled experts are called in their task's folder."""
FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a model: weights, configuration, tokenizer. No code."""
PICKLED = (*FETCHED, "*.bin")
"""The same for models that were published before safetensors."""


@dataclass(frozen=True, slots=True)
class PipelineModels:
    """The base's folder and the experts' folders or files, by task."""

    base: Path
    experts: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Ingredients:
    """The base's folder, the experts under its names, and tensors that some expert lacks."""

    base: Path
    experts: Mapping[str, Checkpoint]
    absent: tuple[str, ...]

    def weights_of_base(self) -> Mapping[str, Tensor]:
        """The base's tensors, each read when it is asked for."""
        return CheckpointTensors(open_checkpoint(self.base))

    def weights(self, task: str) -> dict[str, Tensor]:
        """An expert's tensors by name, the base's where it has none."""
        mine, origin = CheckpointTensors(self.experts[task]), self.weights_of_base()
        return {name: (mine if name in mine else origin)[name] for name in origin}


def ingredients(base: Path, experts: Mapping[str, Path]) -> Ingredients:
    """The experts under the base's names, without what the base does not have."""
    origin = open_checkpoint(base)
    own = {task: in_base_names(path, origin) for task, path in experts.items()}
    absent = {name for expert in own.values() for name in origin.specs if name not in expert.specs}
    return Ingredients(base, own, tuple(sorted(absent)))


def in_base_names(path: Path, origin: Checkpoint) -> Checkpoint:
    """An expert under the names of its base; CheckpointError where they have none in common."""
    expert = align(open_checkpoint(path), origin)
    names = [name for name in expert.specs if name in origin.specs]
    if not names:
        raise CheckpointError(
            "none of its tensors has a name of the base's",
            source=path,
            remedy="check that it is a fine-tune of this base",
        )
    return under_names(expert, {name: name for name in names})


def find_here(pipeline: Pipeline, role: str, folder: Path | None) -> Path | None:
    """A model that needs no download: in the user's folder, else in the hub's cache."""
    own = _in_folder(pipeline, role, folder)
    return own or _from_hub(_hub(pipeline, role), fetch=False)[0]


def check_inputs(folder: Path | None) -> None:
    """CheckpointError where the folder of the user's models is not there."""
    if folder is not None and not folder.is_dir():
        raise CheckpointError(
            "no such folder", source=folder, remedy="name the folder of your models with --inputs"
        )


def find_models(
    pipeline: Pipeline, tasks: tuple[str, ...], folder: Path | None, machine: Machine | None = None
) -> PipelineModels:
    """All models of a pipeline: in `folder`, else in the hub's cache, else fetched.

    CheckpointError, with all that is missing, where one of them cannot be had.
    """
    roles, models, missing = ("base", *tasks), {}, []
    for number, role in enumerate(roles, start=1):
        path, problem = _in_folder(pipeline, role, folder), ""
        if path is None:
            path, problem = _from_hub(_hub(pipeline, role), fetch=True)
        if path is None:
            names, hub = _names(pipeline, role), _hub(pipeline, role)
            where = "" if hub is None else f" ({hub}: {problem})"
            missing.append(f"  {role}{where}: as {' or '.join(names[:3])}")
        else:
            models[role] = path
        if machine is not None and machine.progress is not None:
            machine.progress("looking for models", number, len(roles))
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(roles)} models are missing:\n" + "\n".join(missing),
            source=folder,
            remedy="download them where there is a network, and name their folder with --inputs",
        )
    return PipelineModels(models.pop("base"), models)


def _hub(pipeline: Pipeline, role: str) -> str | None:
    return pipeline.base if role == "base" else pipeline.experts[role].hub


def _names(pipeline: Pipeline, role: str) -> tuple[str, ...]:
    """What a model may be called in a folder."""
    hub = _hub(pipeline, role)
    folders = () if role == "base" else pipeline.experts[role].folders
    return (role, *folders, *(() if hub is None else (hub.rpartition("/")[2], hub)))


def _in_folder(pipeline: Pipeline, role: str, folder: Path | None) -> Path | None:
    """A model in the user's folder, under one of the names that it is known by."""
    for path in _places(pipeline, role, folder) if folder else ():
        if path.is_file():
            return path
        if path.is_dir():
            whole = [path / inner for inner in WITHIN if (path / inner).is_file()]
            return whole[0] if whole else path
    return None


def _places(pipeline: Pipeline, role: str, folder: Path) -> Iterator[Path]:
    for place in (folder, *(folder / name for name in pipeline.folders)):
        for inner in (place, place / "experts"):
            for name in _names(pipeline, role):
                yield from (inner / f"{name}{ending}" for ending in FILES)


def _from_hub(hub: str | None, *, fetch: bool) -> tuple[Path | None, str]:
    """A model's folder in the cache of the hub, and what went wrong."""
    if hub is None:
        return None, "no name on the hub"
    try:
        library = needed("huggingface_hub", f"fetching {hub}")
    except MagmergeError as error:
        return None, error.problem
    problem = ""
    for only_local in (True, False) if fetch else (True,):
        for patterns in (FETCHED, PICKLED):
            options = {"allow_patterns": list(patterns), "local_files_only": only_local}
            try:
                folder = Path(library.snapshot_download(hub, **options))
            except Exception as error:
                problem = next(iter(str(error).splitlines()), type(error).__name__)
            else:
                if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
                    return folder, ""
                problem = "no weights in it"
    return None, problem


ENCODER, PROJECTION = "vision_model.", "visual_projection.weight"
"""What the names of a CLIP's seeing half begin with, and its last layer."""
DONATED = ("preprocessor_config.json", "processor_config.json")


def projects(base: Path, experts: Mapping[str, Path]) -> bool:
    """Whether every expert has the last layer of a CLIP's seeing half."""
    origin = open_checkpoint(base)
    return all(PROJECTION in in_base_names(path, origin).specs for path in experts.values())


def vision_half(base: Path, out: Path, *, projected: bool, anew: bool) -> Path:
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
        vision = whole.vision_config
        vision.projection_dim = whole.projection_dim
        vision.architectures = [kind]
        vision.save_pretrained(folder)
    for name in DONATED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
