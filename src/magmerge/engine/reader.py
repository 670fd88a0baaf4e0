"""Pieces of a layer from all models, in the format of the arithmetic, found to be finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from magmerge.checkpoints.tensor_digests import sampling
from magmerge.core import dtypes
from magmerge.core.errors import NonFiniteError
from magmerge.core.file_system import are_large, size_of
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Checkpoint, Expert, as_stored
from magmerge.core.pieces import RUN, SHORT_RUN, runs
from magmerge.core.types import Piece, Step
from magmerge.engine.job import Job
from magmerge.engine.stored_pieces import Span, StoredPieces
from magmerge.kernels.arguments import FORMATS, Inputs, is_here, kernels_take
from magmerge.kernels.parts import differences
from magmerge.linalg.device import moved
from magmerge.linalg.finite import count_of_bad, is_finite

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

SAMPLED = 1 << 22
"""Entries of all experts together in a sample, at most."""


class Reader:
    """Reads pieces. What is not finite is reported with its tensor and source."""

    def __init__(self, job: Job) -> None:
        self._models = job.models
        self._device = job.device
        self.stored = StoredPieces(job.models)
        models = (job.models.base, *job.models.experts)
        files = {file for model in models if model is not None for file in model.files}
        self._large = are_large(map(size_of, files))

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
        models = _alike(experts, name)
        if kernels_take(tensors) and self.stored.has(step):
            inputs = self.stored.inputs(step, [_span(step, piece)], based=False)
            if what == "deltas":
                inputs = inputs._replace(base=base.reshape(-1).contiguous().numpy())
            seen |= differences(inputs, tensors.reshape(len(experts), -1).numpy())
        elif models is not None:
            _read_together(models, name, [_span(step, piece)], tensors)
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

    def give_back(self, step: Step) -> None:
        """Let go of the pages in which the system keeps a layer that is merged, where the inputs
        are so large that they would fill its memory. Rows of a tensor that is several steps stay.
        """
        if not self._large or step.whole is not None:
            return
        size = math.prod(step.spec.shape)
        for model in (self._models.base, *(expert.whole for expert in self.voters(step))):
            give_back = getattr(model, "give_back", None)
            if model is not None and give_back is not None and step.spec.name in model.specs:
                give_back(step.spec.name, step.first, step.first + size)

    def voters(self, step: Step) -> list[Expert]:
        """The experts that have these rows."""
        places = range(len(self._models.experts)) if step.voters is None else step.voters
        return [self._models.experts[place] for place in places]

    def sample(
        self, steps: Sequence[Step], what: Literal["deltas", "weights"], entries: int
    ) -> Any:
        """[K, about entries]: entries from everywhere in these layers, in proportion to their size;
        always the same ones, and not seen to be finite.
        """
        sizes = [math.prod(step.spec.shape) for step in steps]
        entries = min(entries, SAMPLED // max(1, len(self.voters(steps[0]))))
        short = is_here() and all(map(self.stored.has, steps))
        sampled = runs(sizes, entries, SHORT_RUN if short else RUN)
        parts: list[Any] = []
        with sampling():
            for place, group in itertools.groupby(sampled, lambda run: run[0]):
                first = steps[place].first
                spans = [(first + start, first + stop) for _, start, stop in group]
                parts.append(self._strewn(steps[place], spans, what))
        plain = all(isinstance(part, np.ndarray) for part in parts)
        if plain:
            return np.concatenate(parts, axis=1)
        return torch.cat([torch.as_tensor(part) for part in parts], dim=1)

    def _strewn(self, step: Step, spans: Sequence[Span], what: Literal["deltas", "weights"]) -> Any:
        """[K, entries] of many small parts of a tensor, end to end: of numpy or of torch."""
        if self._device.is_cpu and is_here() and self.stored.has(step):
            inputs = self.stored.inputs(step, spans, based=what == "deltas")
            sample = np.empty((len(inputs.experts), inputs.entries), np.float32)
            differences(inputs, sample)
            return sample
        models = _alike(self.voters(step), step.spec.name)
        if models is None:
            ends = [(start - step.first, stop - step.first) for start, stop in spans]
            pieces = [Piece(start, stop, (stop - start,), 1) for start, stop in ends]
            parts = [
                self.experts(step, piece, self.base(step, piece), what, seen=True)
                for piece in pieces
            ]
            return torch.cat(parts, dim=1)
        size = sum(stop - start for start, stop in spans)
        dtype = torch.float64 if step.wide else torch.float32
        tensors, base = self._device.empty(dtype, (len(models), size)), self._models.base
        _read_together(models, step.spec.name, spans, tensors)
        if what == "deltas" and base is not None:
            own = self._device.empty(dtype, (1, size))
            _read_together([base], step.spec.name, spans, own)
            tensors.sub_(own)
        return tensors

    def _read(
        self,
        source: Checkpoint,
        step: Step,
        piece: Piece,
        dtype: torch.dtype,
        *,
        of_base: bool = False,
    ) -> Tensor:
        part, (start, stop) = self._device.empty(dtype, piece.shape), _span(step, piece)
        code = source.specs[step.spec.name].dtype
        if code in FORMATS and kernels_take(part):
            data = self.stored.bytes_of(source, step.spec.name, [(start, stop)], "one")
            inputs = Inputs(stop - start, start, [data], [FORMATS[code]], None, FORMATS["F32"])
            if differences(inputs, part.reshape(1, -1).numpy()):
                return part
        moved(source.read_part(step.spec.name, start, stop), part, part)
        _check_finite(part, step.spec.name, source.source, of_base=of_base)
        return part


def _span(step: Step, piece: Piece) -> tuple[int, int]:
    """The first entry of a piece in the step's tensor, and its last + 1."""
    return step.first + piece.start, step.first + piece.stop


def _alike(experts: Sequence[Expert], name: str) -> list[Checkpoint] | None:
    """The experts' own models, where all have the tensor stored in one format."""
    models = [expert.whole for expert in experts]
    whole = [model for model in models if model is not None]
    formats = {model.specs[name].dtype for model in whole}
    return whole if len(formats) == 1 and len(whole) == len(models) else None


def _read_together(
    models: Sequence[Checkpoint], name: str, spans: Sequence[tuple[int, int]], tensors: Tensor
) -> None:
    """All models' weights [K, *shape] of these spans at once: one conversion for what is stored
    alike.
    """
    stored = dtypes.torch_dtype(models[0].specs[name].dtype)
    size = (len(models), sum(stop - start for start, stop in spans))
    raw = torch.empty(size, dtype=stored, pin_memory=tensors.is_cuda)
    for model, row in zip(models, raw, strict=True):
        place = 0
        for start, stop in spans:
            model.read_part(name, start, stop, row[place : place + stop - start])
            place += stop - start
    moved(raw, tensors, tensors)


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
