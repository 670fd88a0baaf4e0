"""The models that are measured: what a user names, as weights for the live module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.opening import is_adapter
from magmerge.errors import ParameterError
from magmerge.evaluation.entries import ModelEntry
from magmerge.live.building import WEIGHT_FILES, build_model
from magmerge.live.weights import load
from magmerge.models import Checkpoint
from magmerge.pipeline import merge
from magmerge.result import Result

Measurable: TypeAlias = str | Path | Mapping[str, Tensor] | nn.Module | Result


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, what messages call them, and the folder with their config if there is one.

    `module` is the user's own, which is run as it is.
    """

    name: str
    tensors: Mapping[str, Tensor]
    folder: Path | None = None
    module: nn.Module | None = None


class Stored(Mapping[str, Tensor]):
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


def open_weights(model: Measurable, base: Path | None) -> Weights:
    """The weights behind what a user names; an adapter is put on `base`."""
    if isinstance(model, nn.Module):
        return Weights(f"a {type(model).__name__}", {}, module=model)
    if isinstance(model, Result):
        name = repr(model) if model.path is None else str(model.path)
        return Weights(name, model.state_dict(), model.path if _is_folder(model.path) else None)
    checkpoint = open_checkpoint(model)
    if is_adapter(checkpoint):
        if base is None:
            raise ParameterError(
                "an adapter is a change of a base model, and the suite names no base",
                source=checkpoint.source,
                remedy="add base: FOLDER to the suite",
            )
        whole = merge(base=base, experts={"adapter": model}, method="average", threads=1)
        return Weights(checkpoint.source, whole.state_dict())
    return Weights(checkpoint.source, Stored(checkpoint), checkpoint.folder)


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()


class LiveModel:
    """One module for all models that are measured in turn."""

    def __init__(self, entry: ModelEntry, base: Path | None) -> None:
        self._entry, self._base = entry, base
        self._module: nn.Module | None = None
        self._key: tuple[Any, ...] = ()

    def put(self, weights: Weights, dtype: torch.dtype | None, device: str | None) -> nn.Module:
        """The module with these weights; StructureError where they do not fit it."""
        if weights.module is not None:
            return _as_it_is(weights.module, dtype, device)
        donor = self._base or weights.folder
        key = (donor, dtype or torch.float32, device or "cpu")
        if self._module is not None and self._key[:3] == key:
            names = frozenset(load(self._module, weights.tensors, weights.name))
            # Buffers that a model does not store would keep the last model's values.
            if names == self._key[3]:
                return self._module
        self._module = None
        made = self._build(donor, weights)
        names = frozenset(load(made, weights.tensors, weights.name))
        self._module, self._key = made.to(dtype=key[1], device=key[2]), (*key, names)
        return self._module

    def _build(self, donor: Path | None, weights: Weights) -> nn.Module:
        entry = self._entry
        if donor is None and entry.build is None:
            raise ParameterError(
                "nothing tells what model these tensors are",
                source=weights.name,
                remedy="add base: FOLDER or model: {build: package.module:function} to the suite",
            )
        stored = entry.build is None and any(any(donor.glob(p)) for p in WEIGHT_FILES)  # type: ignore[union-attr]
        return build_model(
            donor or Path(),
            model_class=entry.class_,
            build=entry.build,
            state=None if stored else weights.tensors,
        )


def _as_it_is(module: nn.Module, dtype: torch.dtype | None, device: str | None) -> nn.Module:
    """The user's own module, which is neither moved nor changed."""
    like = next(module.parameters(), torch.empty(0))
    if dtype not in (None, like.dtype) or (
        device is not None and torch.device(device).type != like.device.type
    ):
        raise ParameterError(
            f"the module computes in {like.dtype} on {like.device}",
            source=f"a {type(module).__name__}",
            remedy="leave dtype and device out, or move the module yourself",
        )
    return module


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards as it was."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, training in modes.items():
            one.training = training
