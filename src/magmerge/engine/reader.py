"""Pieces of a layer from all models, in the format of the arithmetic, found to be finite."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from magmerge.checkpoints.output.writer import stored_bytes
from magmerge.core import dtypes
from magmerge.core.errors import NonFiniteError
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Checkpoint, Expert, as_stored
from magmerge.core.types import Piece, Step
from magmerge.engine.job import Job
from magmerge.kernels.arguments import FORMATS, Inputs, is_here
from magmerge.kernels.parts import differences
from magmerge.linalg.device import moved
from magmerge.linalg.finite import count_of_bad, is_finite

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

RUNS, STRIDE = 32, 8
"""A sample is every STRIDE-th entry of RUNS stretches of a layer."""


class Memory(threading.local):
    """A thread's memory for pieces as stored, kept for the next one."""

    def __init__(self) -> None:
        self._blocks: dict[object, Bytes] = {}

    def block(self, name: object, size: int) -> Bytes:
        """The block of this name, of so many bytes; what was in it before is lost."""
        known = self._blocks.get(name)
        if known is None or len(known) < size:
            known = self._blocks[name] = np.empty(size, np.uint8)
        return known[:size]


class Reader:
    """Reads pieces. What is not finite is reported with its tensor and source."""

    def __init__(self, job: Job) -> None:
        self._models = job.models
        self._device = job.device
        self.memory = Memory()

    def base(self, step: Step, piece: Piece) -> Tensor:
        """The base's piece in float32, or float64 for a float64 model; zeros without a base."""
        base, dtype = self._models.base, torch.float64 if step.wide else torch.float32
        if base is None:
            return self._device.empty(dtype, piece.shape).zero_()
        return self._read(base, step, piece, dtype, of_base=True)

    def merged(self, step: Step, piece: Piece) -> Tensor:
        """The piece of the merged model that is calibrated."""
        dtype = torch.float64 if step.wide else torch.float32
        return self._read(self._models.layout, step, piece, dtype)

    def carried(self, step: Step, piece: Piece) -> Bytes | None:
        """The layout's own bytes, where it can give them and the result has the same format."""
        layout, name, code = self._models.layout, step.spec.name, step.spec.dtype
        source = as_stored(layout, name)
        if source is None or layout.specs[name].dtype != code:
            return None
        start, stop = step.first + piece.start, step.first + piece.stop
        data = np.empty((stop - start) * dtypes.width(code), np.uint8)
        source.read_bytes(name, start, stop, data)
        return data

    def experts(
        self,
        step: Step,
        piece: Piece,
        base: Tensor,
        what: Literal["deltas", "weights"],
        *,
        seen: bool = False,
    ) -> Tensor:
        """[K, *piece]: the voters' task vectors or weights. `seen`: found to be finite before."""
        experts, name = self.voters(step), step.spec.name
        tensors = base.new_empty((len(experts), *base.shape))
        models = [expert.whole for expert in experts]
        codes = {model.specs[name].dtype if model is not None else None for model in models}
        if _is_plain(tensors) and self.has_stored(step):
            array = base.reshape(-1).numpy() if what == "deltas" else None
            inputs = self._inputs(step, piece, array, FORMATS["F32"])
            seen |= differences(inputs, tensors.reshape(len(experts), -1).numpy())
        elif len(codes) == 1 and None not in codes:
            self._read_together(experts, step, piece, tensors)
            if what == "deltas":
                tensors.sub_(base)
        else:
            for expert, tensor in zip(experts, tensors, strict=True):
                read = expert.weight if what == "weights" else expert.delta
                read(name, base, step.first + piece.start, tensor)
        if not seen and not is_finite(tensors):
            for expert, tensor in zip(experts, tensors, strict=True):
                own = tensor
                if what == "deltas" and not is_finite(tensor):
                    own = expert.weight(name, base, step.first + piece.start)
                _check_finite(own, name, expert.source)
                _check_difference(tensor, name, expert.source)
        return tensors

    def voters(self, step: Step) -> list[Expert]:
        """The experts that have these rows."""
        places = range(len(self._models.experts)) if step.voters is None else step.voters
        return [self._models.experts[place] for place in places]

    def has_stored(self, step: Step) -> bool:
        """Whether `stored` can give this layer: whole models of formats that kernels know."""
        models = [expert.whole for expert in self.voters(step)]
        models += [] if self._models.base is None else [self._models.base]
        return all(
            model is not None and model.specs[step.spec.name].dtype in FORMATS for model in models
        )

    def stored(self, step: Step, piece: Piece) -> Inputs:
        """The base's piece and the voters', as stored, in this thread's memory."""
        base, name = self._models.base, step.spec.name
        if base is None:
            return self._inputs(step, piece, None, FORMATS["F32"])
        data = self._bytes(name, *_range(step, piece), base, "base")
        return self._inputs(step, piece, data, FORMATS[base.specs[name].dtype])

    def _inputs(self, step: Step, piece: Piece, base: Any, base_format: int) -> Inputs:
        """The voters' pieces as stored, with the base's in this format."""
        (start, stop), name = _range(step, piece), step.spec.name
        models = [expert.whole for expert in self.voters(step) if expert.whole is not None]
        data = [self._bytes(name, start, stop, model, k) for k, model in enumerate(models)]
        formats = [FORMATS[model.specs[name].dtype] for model in models]
        return Inputs(stop - start, start, data, formats, base, base_format)

    def _bytes(self, name: str, start: int, stop: int, model: Checkpoint, place: object) -> Bytes:
        source = as_stored(model, name)
        if source is None:
            return stored_bytes(model.read_part(name, start, stop))
        size = (stop - start) * dtypes.width(model.specs[name].dtype)
        data = self.memory.block(place, size)
        source.read_bytes(name, start, stop, data)
        return data

    def _read_together(
        self, experts: Sequence[Expert], step: Step, piece: Piece, tensors: Tensor
    ) -> None:
        """All experts' weights at once: one conversion for models that are stored alike."""
        models, name = (
            [expert.whole for expert in experts if expert.whole is not None],
            step.spec.name,
        )
        start, stop = step.first + piece.start, step.first + piece.stop
        stored = dtypes.torch_dtype(models[0].specs[name].dtype)
        size = (len(models), piece.stop - piece.start)
        raw = torch.empty(size, dtype=stored, pin_memory=tensors.is_cuda)
        for model, row in zip(models, raw, strict=True):
            model.read_part(name, start, stop, row)
        moved(raw, tensors, tensors)

    def sample(self, step: Step, what: Literal["deltas", "weights"], entries: int) -> Tensor:
        """[K, entries]: some entries from everywhere in the layer; always the same ones."""
        size, length = math.prod(step.spec.shape), STRIDE * max(1, entries // RUNS)
        parts = []
        for run in range(RUNS):
            start = max(0, size - length) * run // (RUNS - 1)
            piece = Piece(start, min(start + length, size), (min(length, size),), length)
            tensors = self.experts(step, piece, self.base(step, piece), what)
            parts.append(tensors[:, ::STRIDE])
        return torch.cat(parts, dim=1)

    def _read(
        self,
        source: Checkpoint,
        step: Step,
        piece: Piece,
        dtype: torch.dtype,
        *,
        of_base: bool = False,
    ) -> Tensor:
        part = self._device.empty(dtype, piece.shape)
        (start, stop), code = _range(step, piece), source.specs[step.spec.name].dtype
        if code in FORMATS and _is_plain(part):
            data = self._bytes(step.spec.name, start, stop, source, "one")
            inputs = Inputs(stop - start, start, [data], [FORMATS[code]], None, 0)
            if differences(inputs, part.reshape(1, -1).numpy()):
                return part
        moved(source.read_part(step.spec.name, start, stop), part, part)
        _check_finite(part, step.spec.name, source.source, of_base=of_base)
        return part


def _is_plain(tensor: Tensor) -> bool:
    """Whether compiled kernels can fill it."""
    return tensor.is_cpu and tensor.dtype == torch.float32 and is_here()


def _range(step: Step, piece: Piece) -> tuple[int, int]:
    """The entries of the step's tensor that the piece is."""
    return step.first + piece.start, step.first + piece.stop


def _check_difference(tensor: Tensor, name: str, source: str) -> None:
    """NonFiniteError where finite weights are too far from the base's for the arithmetic."""
    if not is_finite(tensor):
        raise NonFiniteError(
            "its difference from the base is too large for float32",
            source=source,
            tensor=name,
            remedy=f"see that both models are sound, or keep the base's tensor: --ignore {name} "
            "(ignore=)",
        )


def _check_finite(tensor: Tensor, name: str, source: str, *, of_base: bool = False) -> None:
    if is_finite(tensor):
        return
    raise NonFiniteError(
        count_of_bad(tensor),
        source=source,
        tensor=name,
        remedy="use a sound copy of this model"
        + ("" if of_base else f", or keep the base's tensor: --ignore {name} (ignore=)"),
    )
