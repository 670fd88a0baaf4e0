"""A pipeline as diffusers saves it, model_index.json and a folder for each part, as one model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from magmerge.checkpoints.donor import part_folders, weights_file
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.loader import READ
from magmerge.core.errors import CheckpointError, shortened
from magmerge.core.models import Checkpoint, as_stored
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from magmerge.core.models import Bytes, Stored

WHOLE_PIPELINE = (
    "give a whole pipeline's folder; in diffusers, from_single_file(FILE) of the pipeline's class "
    "and save_pretrained(FOLDER) make one of a single file"
)


class PipelineFolder:
    """The models of a pipeline as one checkpoint; a tensor's name begins with its part's, as in
    unet.conv_in.weight.

    Only what is read is opened further. `lent` are parts that the pipeline itself has not, and that
    it has no vote on; `untouched` the names of tensors that are known to be the base's.
    """

    def __init__(
        self,
        source: str,
        folder: Path | None,
        parts: Mapping[str, Checkpoint],
        *,
        lent: Mapping[str, Checkpoint] = MappingProxyType({}),
        notes: Sequence[str] = (),
    ) -> None:
        self.source, self.folder, self.parts = source, folder, {**lent, **parts}
        self.files = tuple(file for part in parts.values() for file in part.files)
        told = (f"{name}: {note}" for name, part in parts.items() for note in part.notes)
        self.notes = (*notes, *told)
        self._places = {
            f"{part}.{name}": (part, name)
            for part, model in self.parts.items()
            for name in model.specs
        }
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: self._spec(name) for name in self._places}
        )
        self.ties: Mapping[str, str] = {
            f"{part}.{name}": f"{part}.{twin}"
            for part, model in self.parts.items()
            for name, twin in model.ties.items()
        }
        self.kinds: Mapping[str, Kind] = {
            f"{part}.{name}": kind
            for part, model in self.parts.items()
            for name, kind in kinds_of(model, read_model_config(model)).items()
        }
        self.absent: Mapping[str, Sequence[range]] = {
            f"{part}.{name}": [range(math.prod(spec.shape[:1]))]
            for part, model in lent.items()
            for name, spec in model.specs.items()
        }
        self.untouched: frozenset[str] = frozenset(self.absent)

    def part_of(self, name: str) -> str:
        """The part that a tensor belongs to, which is its folder."""
        return self._places[name][0]

    @property
    def weights(self) -> dict[str, str]:
        """Under what name each part's library looks for its tensors."""
        return {part: weights_file(model.folder) for part, model in self.parts.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`."""
        part, inner = self._places[name]
        return self.parts[part].read(inner)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        part, inner = self._places[name]
        return self.parts[part].read_part(inner, start, stop, out)

    def raw(self, name: str) -> bool:
        """Whether its stored bytes are a stored tensor's."""
        part, inner = self._places[name]
        return as_stored(self.parts[part], inner) is not None

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        part, inner = self._places[name]
        cast("Stored", self.parts[part]).read_bytes(inner, start, stop, out)

    def _spec(self, name: str) -> TensorSpec:
        part, inner = self._places[name]
        spec = self.parts[part].specs[inner]
        return TensorSpec(name, spec.shape, spec.dtype)


def opened(folder: Path, parts: Mapping[str, Checkpoint]) -> PipelineFolder:
    """The pipeline in a folder, of the models of its parts."""
    check_parts(folder, parts)
    beside = sorted(file.name for file in folder.iterdir() if file.suffix in READ)
    note = f"{folder} is read as a pipeline; beside its parts lies {shortened(beside)}"
    return PipelineFolder(str(folder), folder, parts, notes=[note] if beside else [])


def check_parts(folder: Path, parts: Mapping[str, Checkpoint]) -> None:
    """CheckpointError where a part is a model, as its config.json tells, and has no weights."""
    for name in part_folders(folder):
        if name not in parts and (folder / name / "config.json").is_file():
            raise CheckpointError(
                f"its part {name} has a config.json and no weights",
                source=folder,
                remedy=f"fetch the files of {folder / name} that are missing",
            )


def on_pipeline(
    checkpoint: Checkpoint,
    base: PipelineFolder,
    parts: Mapping[str, Checkpoint],
    equal: Collection[str],
) -> PipelineFolder:
    """An expert of a pipeline. `parts` are its own, under the base's names, of which `equal` are as
    the base has them. What it lacks is the base's, and no vote.
    """
    lent = {name: model for name, model in base.parts.items() if name not in parts}
    notes: list[str] = list(checkpoint.notes)
    if not hasattr(checkpoint, "parts"):
        notes.append(f"{checkpoint.source} is taken as the pipeline's {', '.join(parts)}")
    elif lent:
        has = f"has {', '.join(parts)} and no {', '.join(lent)}"
        notes.append(f"{checkpoint.source} {has}: of those it has no vote")
    expert = PipelineFolder(checkpoint.source, checkpoint.folder, parts, lent=lent, notes=notes)
    known = {name for name in expert.specs if expert.part_of(name) in equal}
    expert.untouched |= known
    return expert


def part_like(
    checkpoint: Checkpoint, parts: Mapping[str, Checkpoint], aligned: Mapping[str, Checkpoint]
) -> str:
    """The part that a lone model is: of the tensors that it has, by its folder's name if several
    are alike. `aligned` is the model under the names of each. CheckpointError where it is none.
    """
    alike = [part for part, model in parts.items() if _shapes(model) == _shapes(aligned[part])]
    named = [part for part in alike if checkpoint.folder and checkpoint.folder.name == part]
    chosen = named or alike
    if len(chosen) == 1:
        return chosen[0]
    raise CheckpointError(
        f"it may be {' or '.join(chosen)} of the pipeline, which are alike"
        if chosen
        else f"the base is a pipeline, and this is none of its parts ({', '.join(parts)})",
        source=checkpoint.source,
        remedy=f"call its folder as the part, such as {chosen[0]}" if chosen else WHOLE_PIPELINE,
    )


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in checkpoint.specs.items()}
