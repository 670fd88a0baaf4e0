"""The models that are measured: what a user names, as weights for the live module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.clip import family_of, in_family
from magmerge.checkpoints.loader import is_adapter
from magmerge.core import dtypes
from magmerge.core.errors import NonFiniteError, ParameterError
from magmerge.core.machine import CPU, DEFAULT_MEMORY, Machine, Progress
from magmerge.core.models import Checkpoint
from magmerge.engine.result import Result
from magmerge.evaluation.entries import ModelEntry
from magmerge.linalg.device import open_device
from magmerge.linalg.finite import count_of_bad, is_finite
from magmerge.live.module_weights import load, matched
from magmerge.live.modules import WEIGHT_FILES, bare_model
from magmerge.pipeline.merge import merge

Measurable: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Result


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the arithmetic is done with, and who hears of it; only the dtype changes a score.

    A module of the user's own keeps device and dtype where they are None. Raises ParameterError or
    UnknownNameError for what there is not.
    """

    threads: int | None = None
    workers: int | None = None
    device: str | None = None
    dtype: str | None = None
    memory: str | int = DEFAULT_MEMORY
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and (not isinstance(self.workers, int) or self.workers < 1):
            raise ParameterError(f"{self.workers} workers", remedy="give one worker or more")
        open_device(self.device or CPU)
        Machine(self.threads, self.memory)
        dtypes.parse_float_dtype(str(self.dtype or "float32"))

    @property
    def format(self) -> torch.dtype | None:
        """The dtype as torch has it."""
        return dtypes.torch_dtype(dtypes.parse_float_dtype(self.dtype)) if self.dtype else None

    def tell(self, label: str, done: int, total: int) -> None:
        """Say how far the work is."""
        if self.progress is not None:
            self.progress(label, done, total)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """What messages call a model, its tensors' shapes, and the folder with its config, if any.

    `read` gives the tensors by name, when the model's turn comes; `checkpoint` is where they are
    from, if from one. `module` is the user's own, which is run as it is.
    """

    name: str
    read: Callable[[], Mapping[str, Tensor]] = dict
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folder: Path | None = None
    module: nn.Module | None = None
    checkpoint: Checkpoint | None = None

    def size(self, dtype: torch.dtype | None) -> int:
        """Bytes of a live module with these tensors; none for the user's own, which is there."""
        entries = sum(math.prod(shape) for shape in self.shapes.values())
        return entries * (dtype or torch.float32).itemsize


class CheckpointTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.specs)

    def __len__(self) -> int:
        return len(self._checkpoint.specs)

    def __contains__(self, name: object) -> bool:
        return name in self._checkpoint.specs


def open_weights(model: Measurable, base: Path | None) -> ModelWeights:
    """The weights behind what a user names; an adapter is put on `base`."""
    if isinstance(model, nn.Module):
        return ModelWeights(f"a {type(model).__name__}", module=model)
    if isinstance(model, Result):
        name = repr(model) if model.path is None else str(model.path)
        folder = model.path if model.path is not None and model.path.is_dir() else None
        shapes = {step.spec.name: step.spec.shape for step in model.plan.steps}
        return ModelWeights(name, model.state_dict, shapes, folder)
    checkpoint = open_checkpoint(model)
    if is_adapter(checkpoint):
        if base is None:
            raise ParameterError(
                "an adapter is a change of a base model, and the suite names no base",
                source=checkpoint.source,
                remedy="add base: FOLDER to the suite",
            )
        merged = partial(_on_base, model, base)
        return ModelWeights(checkpoint.source, merged, _shapes(open_checkpoint(base)))
    return _of_checkpoint(checkpoint, checkpoint.source, checkpoint.folder)


def in_names_of(weights: ModelWeights, module: nn.Module) -> ModelWeights:
    """The weights under the module's names, where both are CLIP models of different families.

    Hugging Face, open_clip (OpenAI's own) and timm name and fuse the same tensors differently.
    """
    family, own = family_of(module.state_dict()), family_of(weights.shapes)
    if family is None or own is None or family == own:
        return weights
    checkpoint = weights.checkpoint or open_checkpoint(weights.read())
    return _of_checkpoint(in_family(checkpoint, family), weights.name, weights.folder)


def _of_checkpoint(checkpoint: Checkpoint, name: str, folder: Path | None) -> ModelWeights:
    stored = partial(CheckpointTensors, checkpoint)
    return ModelWeights(name, stored, _shapes(checkpoint), folder, checkpoint=checkpoint)


def _on_base(adapter: Any, base: Path) -> Mapping[str, Tensor]:
    whole = merge(base=base, experts={"adapter": adapter}, method="average", threads=1)
    return whole.state_dict()


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in checkpoint.specs.items()}


def check_finite(module: nn.Module, source: str) -> None:
    """NonFiniteError where a weight is not finite: its model would be scored like any other."""
    for name, weight in module.named_parameters():
        if not is_finite(weight.detach()):
            remedy = "use a sound copy of this model"
            raise NonFiniteError(count_of_bad(weight), source=source, tensor=name, remedy=remedy)


class LiveModel:
    """One module for all models that are measured in turn."""

    def __init__(self, entry: ModelEntry, base: Path | None) -> None:
        self._entry, self._base = entry, base
        self._module: nn.Module | None = None
        self._key: tuple[Any, ...] = ()

    def put(self, weights: ModelWeights, machine: Hardware) -> nn.Module:
        """The module with these weights; StructureError where they do not fit it."""
        if weights.module is not None:
            check_finite(weights.module, weights.name)
            return _as_it_is(weights.module, machine)
        # Buffers and poolers that a model does not store would keep the last model's values.
        place = self._place(weights, machine)
        key = (*place, frozenset(weights.shapes))
        module = self._module if self._key == key else None
        # A model that does not fit, and the one of other names, leave their place.
        self._module, self._key = None, ()
        if module is None:
            module = self._build(place[0], weights.name)
        load(module, in_names_of(weights, module).read(), weights.name)
        check_finite(module, weights.name)
        self._module, self._key = module.to(dtype=place[1], device=place[2]), key
        return self._module

    def check(self, weights: ModelWeights, machine: Hardware) -> None:
        """StructureError where weights do not fit the module that is there, if it is for them."""
        alike = self._key[:3] == self._place(weights, machine)
        if self._module is not None and weights.module is None and alike:
            matched(self._module, in_names_of(weights, self._module).shapes, weights.name)

    def another(self) -> LiveModel:
        """One for a further model at the same time."""
        return LiveModel(self._entry, self._base)

    def _place(
        self, weights: ModelWeights, machine: Hardware
    ) -> tuple[Path | None, torch.dtype, str]:
        folder = self._base or weights.folder
        return folder, machine.format or torch.float32, machine.device or CPU

    def _build(self, donor: Path | None, source: str) -> nn.Module:
        entry = self._entry
        if donor is None and entry.build is None:
            raise ParameterError(
                "nothing tells what model these tensors are",
                source=source,
                remedy="add base: FOLDER or model: {build: package.module:function} to the suite",
            )
        # A folder's own weights come with the buffers that no model need store.
        stored = entry.build is None and any(any(donor.glob(p)) for p in WEIGHT_FILES)  # type: ignore[union-attr]
        return bare_model(
            donor or Path(), model_class=entry.class_, build=entry.build, loaded=stored
        ).eval()


def _as_it_is(module: nn.Module, machine: Hardware) -> nn.Module:
    """The user's own module, which is neither moved nor changed."""
    like = next(module.parameters(), torch.empty(0))
    device = like.device.type if machine.device is None else torch.device(machine.device).type
    if (machine.format or like.dtype, device) != (like.dtype, like.device.type):
        raise ParameterError(
            f"the module computes in {like.dtype} on {like.device}",
            source=f"a {type(module).__name__}",
            remedy="leave dtype and device out, or move the module yourself",
        )
    return module


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
