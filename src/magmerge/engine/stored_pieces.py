"""Pieces of a layer from all models as their files have them, for compiled kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from magmerge.checkpoints.output.writer import stored_bytes
from magmerge.core import dtypes
from magmerge.core.models import Checkpoint, as_stored
from magmerge.core.types import Step
from magmerge.engine.job import Models
from magmerge.engine.memory import KEPT
from magmerge.kernels.arguments import FORMATS, Inputs

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

Span = tuple[int, int]
"""The first entry of a part of a tensor, and its last + 1."""


class Memory(threading.local):
    """A thread's memory for pieces as stored, kept for the next one unless it is large."""

    def __init__(self) -> None:
        self._blocks: dict[object, Bytes] = {}

    def block(self, name: object, size: int) -> Bytes:
        """The block of this name, of so many bytes; what was in it before is lost."""
        if size > KEPT:
            return np.empty(size, np.uint8)
        known = self._blocks.get(name)
        if known is None or len(known) < size:
            known = self._blocks[name] = np.empty(size, np.uint8)
        return known[:size]


class StoredPieces:
    """Reads pieces of whole models into memory of the thread that asks."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.memory = Memory()

    def has(self, step: Step) -> bool:
        """Whether all of the layer's models are whole, in formats that kernels know."""
        models = self._voters(step)
        models += [] if self._models.base is None else [self._models.base]
        return not step.wide and all(
            model is not None and model.specs[step.spec.name].dtype in FORMATS for model in models
        )

    def inputs(self, step: Step, spans: Sequence[Span], *, based: bool = True) -> Inputs:
        """These parts of the step's tensor, end to end; without the base unless they are `based`
        on it.
        """
        base, name = self._models.base if based else None, step.spec.name
        models = [model for model in self._voters(step) if model is not None]
        return Inputs(
            sum(stop - start for start, stop in spans),
            spans[0][0],
            [self.bytes_of(model, name, spans, k) for k, model in enumerate(models)],
            [FORMATS[model.specs[name].dtype] for model in models],
            None if base is None else self.bytes_of(base, name, spans, "base"),
            FORMATS["F32"] if base is None else FORMATS[base.specs[name].dtype],
        )

    def bytes_of(self, model: Checkpoint, name: str, spans: Sequence[Span], place: object) -> Bytes:
        """The stored bytes of a model, in this thread's block `place`."""
        source, width = as_stored(model, name), dtypes.width(model.specs[name].dtype)
        if source is None and len(spans) == 1:
            return _as_stored(model, name, spans[0])
        data, done = self.memory.block(place, width * sum(b - a for a, b in spans)), 0
        # By the class: a view gives on what it does not know, under a name that is not its own.
        if len(spans) > 1 and hasattr(type(source), "read_strewn"):
            cast("Any", source).read_strewn(name, spans, data)
            return data
        for start, stop in spans:
            part = data[done : done + (stop - start) * width]
            if source is None:
                part[:] = _as_stored(model, name, (start, stop))
            else:
                source.read_bytes(name, start, stop, part)
            done += len(part)
        return data

    def _voters(self, step: Step) -> list[Checkpoint | None]:
        experts = self._models.experts
        places = range(len(experts)) if step.voters is None else step.voters
        return [experts[place].whole for place in places]


def _as_stored(model: Checkpoint, name: str, span: Span) -> Bytes:
    """Bytes in the format of the tensor's header, whatever a view computes in."""
    dtype = dtypes.torch_dtype(model.specs[name].dtype)
    return stored_bytes(model.read_part(name, *span).to(dtype))
