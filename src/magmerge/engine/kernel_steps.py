"""Pieces by compiled kernels: stored bytes of all models in, stored bytes of the result out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from ctypes import c_float
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from magmerge.core import dtypes
from magmerge.core.fused import Fused
from magmerge.core.traits import MagnitudeSurvey, Noted, Survey
from magmerge.core.types import Piece, Step
from magmerge.engine.job import Work
from magmerge.engine.layer import Tally
from magmerge.engine.stages import Treatment
from magmerge.engine.step_method import method_for
from magmerge.engine.stored_pieces import Memory, StoredPieces
from magmerge.kernels.arguments import DELTA, FORMATS, Bytes, Inputs, is_here
from magmerge.kernels.merging import Calibration, calibrated, merged
from magmerge.kernels.parts import differences, keep_by_rank, observed
from magmerge.linalg.draws import chances_by_rank, chunk_states

BY_ROWS = ("matrix", "convolution")
"""Kinds of layers whose output rows lie in memory one after the other."""


class Stored(NamedTuple):
    """A piece of the result as its file has it, and the tally of what was done."""

    data: Bytes
    tally: Tally


@dataclass(frozen=True, slots=True)
class KernelStep:
    """A layer's merge, and its calibration where it has one, as compiled kernels do it."""

    step: Step
    pieces: StoredPieces
    fused: Fused
    calibration: Calibration | None
    bound: float

    def run(self, piece: Piece) -> Stored | None:
        """The piece merged; None where something in it is not finite, or becomes too large, or a
        factor is above the bound.

        The bytes are this thread's, until it runs another piece.
        """
        step = self.step
        span = step.first + piece.start, step.first + piece.stop
        inputs = self.pieces.inputs(step, [span])
        if self.fused.keep == "drop":
            stop = inputs.start + inputs.entries
            states = chunk_states(self.fused.seeds, inputs.start, stop)
            inputs = inputs._replace(states=states)
        fused = self.fused
        if fused.keep == "rank":
            columns = math.prod(piece.shape[1:]) if len(piece.shape) > 1 else inputs.entries
            dropped = by_rank(fused, inputs, columns, self.pieces.memory)
            if dropped is None:
                return None
            fused, inputs = dropped
        code = FORMATS[step.spec.dtype]
        data = self.pieces.memory.block("result", inputs.entries * dtypes.width(step.spec.dtype))
        if self.calibration is None:
            squares = merged(fused, inputs, piece.grain, code, data)
            if squares is None:
                return None
            return Stored(data, Tally(before=tuple(squares), after=tuple(squares)))
        columns = math.prod(step.spec.shape[1:])
        rows = calibrated(fused, self.calibration, inputs, columns, code, data)
        if rows is None or bool((rows.factor > self.bound).any()):
            return None
        factor = rows.factor.astype(np.float64)
        tally = Tally(
            xi=tuple(factor.tolist()),
            free=(tuple(rows.free.astype(np.float64).tolist()),),
            gated=(tuple(factor.tolist()),),
            experts=tuple(map(tuple, rows.experts.tolist())),
            cosines=tuple(rows.cosines.tolist()),
            before=tuple(rows.before.tolist()),
            after=tuple((rows.before * (factor * factor)).tolist()),
        )
        return Stored(data, tally)


def by_rank(
    fused: Fused, inputs: Inputs, columns: int, blocks: Memory
) -> tuple[Fused, Inputs] | None:
    """The merge that is left, and task vectors for it, when entries have been dropped by their
    ranks in rows of so many `columns`; None where something is not finite.
    """
    experts = len(inputs.experts)
    stop = inputs.start + inputs.entries
    deltas = blocks.block("deltas", 4 * experts * inputs.entries).view(np.float32)
    deltas = deltas.reshape(experts, inputs.entries)
    if not differences(inputs, deltas):
        return None
    states = chunk_states(fused.seeds, inputs.start, stop)
    for k, (stay, spread) in enumerate(zip(fused.stay, fused.spread, strict=True)):
        if stay != 1:
            chances = chances_by_rank(columns, stay, spread).astype(np.float32)
            rows = deltas[k].reshape(-1, columns)
            keep_by_rank(rows, chances, states[k], inputs.start, inverse=fused.inverse)
    left = replace(fused, keep="all", stay=(), seeds=(), spread=(), inverse=False)
    return left, inputs._replace(experts=list(deltas), formats=[DELTA] * experts)


def kernel_of(
    work: Work, pieces: StoredPieces, step: Step, survey: Mapping[str, Any] | None
) -> KernelStep | None:
    """How compiled kernels do this step; None where they cannot, and the functions do it."""
    plain = work.models.merged is None and work.stages.method is not None and not step.wide
    if not plain or not work.job.device.is_cpu or step.spec.dtype not in FORMATS:
        return None
    calibration, usable = _calibration(work.stages.treatment, step)
    if not usable or not math.prod(step.spec.shape):
        return None
    method, bound = method_for(work, step, survey)
    if method.kernel is None or not pieces.has(step) or not is_here():
        return None
    keywords = {parameter.keyword: parameter.default for parameter in method.parameters}
    keywords |= dict.fromkeys(method.supplied - {"start"}) | bound
    fused = method.kernel(experts=len(work.voters(step)), **keywords)
    if fused is None or not _fit_float32(fused.weights):
        return None
    if fused.keep == "rank" and calibration is not None:
        # The calibration looks at what was dropped too.
        return None
    return KernelStep(step, pieces, fused, calibration, work.stages.treatment.bound)


def _fit_float32(weights: Sequence[float]) -> bool:
    """Whether kernels, which have weights in float32, see their signs as the functions do."""
    pairs = [(weight, c_float(weight).value) for weight in weights]
    return all(math.isfinite(small) and (small != 0) == (own != 0) for own, small in pairs)


def noted(work: Work, pieces: StoredPieces, step: Step, survey: Survey, piece: Piece) -> bool:
    """Whether kernels have told the survey what it must know of a piece; else it is to observe it.

    They do not where something is not finite, or the survey must see the tensors.
    """
    # By its names: to ask a protocol takes longer than a small tensor.
    method, brackets = work.stages.method, getattr(survey, "brackets", None)
    if method is None or method.acts_on != "deltas" or not getattr(survey, "takes_arrays", False):
        return False
    if not (work.job.device.is_cpu and pieces.has(step) and is_here()):
        return False
    start, stop = step.first + piece.start, step.first + piece.stop
    inputs = pieces.inputs(step, [(start, stop)])
    if brackets is None:
        deltas = np.empty((len(inputs.experts), inputs.entries), np.float32)
        sound = differences(inputs, deltas)
        if sound:
            survey.observe(step.tensor_key, start, deltas)  # type: ignore[arg-type]
        return sound
    counts = observed(inputs, brackets)
    if counts is None:
        return False
    told = cast("MagnitudeSurvey", survey)
    for row, (above, values) in enumerate(counts):
        told.note(Noted(step.tensor_key, start, stop, row, above, values))
    return True


def _calibration(treatment: Treatment, step: Step) -> tuple[Calibration | None, bool]:
    """How kernels calibrate the layer, and whether they can."""
    calibrators = treatment.of(step)
    if not calibrators:
        return None, True
    calibrator, bound = calibrators[0]
    if len(calibrators) > 1 or calibrator.kernel is None or step.kind not in BY_ROWS:
        return None, False
    keywords = {parameter.keyword: parameter.default for parameter in calibrator.parameters}
    target = calibrator.kernel(**{**keywords, **bound})
    bounded = treatment.gated and calibrator.gated
    gate = ("shrink" if step.sensitive else "grow") if bounded else "off"
    return (None, False) if target is None else (Calibration(target, gate), True)
