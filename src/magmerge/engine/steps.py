"""Steps at work: read each layer by pieces, hand them to layer.py, give results to a sink."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.output.writer import Sink, stored_bytes
from magmerge.core import dtypes, journal
from magmerge.core.errors import NonFiniteError
from magmerge.core.lazy import Tensor, load, torch
from magmerge.core.pieces import cut, stretches, strewn
from magmerge.core.traits import Survey
from magmerge.core.types import LayerRecord, Piece, Step
from magmerge.engine.executors.local import Job, Task
from magmerge.engine.job import Work
from magmerge.engine.kernel_steps import kernel_of, noted
from magmerge.engine.layer import (
    Calibrated,
    Merged,
    Tally,
    applied,
    calibrate_layer,
    merge_layer,
    record_of,
)
from magmerge.engine.memory import bytes_of, cut_for, takes_in_turn
from magmerge.engine.notes import carried_note
from magmerge.engine.reader import Reader
from magmerge.engine.step_method import Keywords, method_for, of_piece, survey_for
from magmerge.kernels.arguments import FORMATS, kernels_take
from magmerge.kernels.parts import cast
from magmerge.linalg.finite import bad_stored

if TYPE_CHECKING:
    from magmerge.core.models import Bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step: its layer's record, an adapter's module or lost tensor, a note."""

    record: LayerRecord | None = None
    module: Any = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What all steps of a pass share: the work, a reader, where results go, whose twins are whose,
    and what is known of the whole model. `surveys` are those of tensors, by their keys, that are
    several steps; `orders` tell for the rows of some tensors which of the result's each is.
    """

    work: Work
    reader: Reader
    sink: Sink
    twins: Mapping[str, Sequence[Step]]
    survey: Survey | None = None
    surveys: Mapping[str, Survey] = field(default_factory=dict)
    orders: Mapping[str, Any] = field(default_factory=dict)

    def put(
        self, step: Step, start: int, tensor: Tensor, *, kept: bool = False, name: str = ""
    ) -> None:
        """Cast a part of the step's result, and give it to the sink; an error tells its `name`."""
        part = self.cast(step, tensor, kept=kept, name=name)
        self.put_bytes(step, start, stored_bytes(part))

    def cast(self, step: Step, tensor: Tensor, *, kept: bool = False, name: str = "") -> Tensor:
        """A part of the step's result in its format, in this machine's memory."""
        to, merged = (step.spec.dtype, name or step.spec.name), not (kept or self.work.job.takes)
        return self.work.job.device.take(cast_result(tensor, *to, kept=kept, merged=merged))

    def put_bytes(self, step: Step, start: int, data: Bytes) -> None:
        """Give the stored bytes of a part of the step's result to the sink."""
        order, first = self.orders.get(step.spec.name), step.first + start
        steps = (step, *self.twins.get(step.spec.name, ()))
        if order is None:
            for twin in steps:
                self.sink.write(twin, first, data)
            return
        row, width = math.prod(step.tensor.shape) // len(order), dtypes.width(step.spec.dtype)
        strewn_parts = strewn(order, row, first, first + len(data) // width)
        parts = [(place, data[begin * width : end * width]) for place, begin, end in strewn_parts]
        for twin in steps:
            self.sink.write_parts(twin, parts)


def run_step(bench: Bench, step: Step) -> Task[Outcome]:
    """One layer of a whole model: its survey, if its method makes one, then its pieces."""
    work = bench.work
    if step.spec.name in work.findings.statistics:
        statistics = work.findings.statistics[step.spec.name]
        yield [Job(0, partial(bench.put, step, 0, statistics))]
        return Outcome()
    if step.action == "carry":
        pieces = cut(step.spec.shape, step.kind, "entries", work.plan.piece)
        bad = yield jobs(bench, step, pieces, partial(_carry, bench, step))
        return Outcome(note=carried_note(work, step, [count for part in bad for count in part]))
    survey = yield from surveyed(bench, step)
    pieces = cut_for(step, work.stages, work.plan.piece)

    kernel = kernel_of(work, bench.reader.stored, step, survey)

    def merge(piece: Piece) -> Tally:
        if kernel is not None:
            stored = kernel.run(piece)
            # Where something is not finite the functions find out what it is.
            if stored is not None:
                bench.put_bytes(step, piece.start, stored.data)
                return stored.tally
        done = treated(bench, step, survey, piece)
        bench.put(step, piece.start, done.weight)
        return done.tally

    tallies = yield jobs(bench, step, pieces, merge)
    flat = [tally for part in tallies for tally in part]
    return Outcome(record_of(step, work.stages.treatment, flat))


def jobs(
    bench: Bench, step: Step, pieces: Sequence[Piece], treat: Callable[[Piece], Any]
) -> list[Job]:
    """A job for each stretch of pieces; its result is the list of the pieces' results."""
    work = bench.work
    size = bytes_of(step, work.stages, len(work.models.experts), pieces)

    def call(stretch: list[Piece]) -> list[Any]:
        with work.job.device.queue():
            return [treat(piece) for piece in stretch]

    return [Job(size, partial(call, stretch)) for stretch in stretches(pieces)]


def treated(bench: Bench, step: Step, survey: Keywords | None, piece: Piece) -> Calibrated:
    """One piece, merged (or taken as it is) and calibrated, in the arithmetic's format."""
    work, reader = bench.work, bench.reader
    if takes_in_turn(step, work.stages, piece):
        method, bound = method_for(work, step, survey)
        treat: Callable[..., Calibrated] = load("magmerge.engine.turns:treated_in_turn")
        return treat(
            reader, step, piece, work.stages.treatment, partial(applied, step, method, bound)
        )
    base = reader.base(step, piece)
    with journal.listening() as notes:
        if work.stages.method is None:
            deltas = reader.experts(step, piece, base, "deltas")
            if work.models.merged is None:
                merged = Merged(deltas[0])
            else:
                weight = reader.merged(step, piece)
                merged = Merged(weight - base, weight)
        else:
            method, bound = method_for(work, step, survey)
            bound = of_piece(method, bound, step.first + piece.start, base)
            tensors = reader.experts(step, piece, base, method.acts_on, seen=survey is not None)
            merged = merge_layer(step, method, bound, base, tensors)
            deltas = tensors if method.acts_on == "deltas" else tensors - base
        done = calibrate_layer(step, piece, work.stages.treatment, base, deltas, merged)
    return done._replace(tally=replace(done.tally, notes=tuple(notes)))


def merged_step(work: Work, step: Step) -> Step:
    """The step as it is merged, also where its result has no place in an adapter."""
    if step.action != "lose":
        return step
    method = work.stages.method
    defined = method is None or method.kinds is None or step.kind in method.kinds
    return replace(step, action="merge" if defined else "mean")


def surveyed(bench: Bench, step: Step) -> Task[Keywords | None]:
    """Everything that the method must know of this layer before its pieces are merged."""
    work = bench.work
    if work.stages.method is None or step.action != "merge":
        return None
    known = bench.survey or bench.surveys.get(step.tensor_key)
    survey = survey_for(work, step) if known is None else _of_voters(bench, step, known)
    if known is None and survey is not None:
        if survey.samples:
            size = 3 * survey.samples * len(work.models.experts) * (8 if step.wide else 4)
            yield [Job(size, partial(_sample, bench, step, survey))]
        pieces = cut(step.spec.shape, "other", "entries", work.plan.piece)
        while survey.passes:
            seen = [p for p in pieces if survey.wants(*_place(step, p))]
            yield jobs(bench, step, seen, partial(_observe, bench, step, survey))
            yield [Job(0, survey.conclude)]
    return None if survey is None else survey.keywords(step.tensor_key)


def _of_voters(bench: Bench, step: Step, survey: Survey) -> Survey:
    """The survey, or of one for each expert those that have the step's rows."""
    of: Callable[[Sequence[int]], Survey] | None = getattr(survey, "of", None)
    return survey if of is None else of(bench.work.voters(step))


def _place(step: Step, piece: Piece) -> tuple[str, int, int]:
    """The tensor of a piece, and where in it the piece is."""
    return step.tensor_key, step.first + piece.start, step.first + piece.stop


def observed(bench: Bench, step: Step, survey: Survey) -> Task[None]:
    """The pieces of a layer that a survey of the whole model wants."""
    pieces = cut(step.spec.shape, "other", "entries", bench.work.plan.piece)
    seen = [piece for piece in pieces if survey.wants(*_place(step, piece))]
    yield jobs(bench, step, seen, partial(_observe, bench, step, survey))


def _sample(bench: Bench, step: Step, survey: Survey) -> None:
    method = bench.work.stages.method
    assert method is not None
    with bench.work.job.device.queue():
        survey.prepare(bench.reader.sample([step], method.acts_on, survey.samples))


def _observe(bench: Bench, step: Step, survey: Survey, piece: Piece) -> None:
    method, own = bench.work.stages.method, _of_voters(bench, step, survey)
    assert method is not None
    if noted(bench.work, bench.reader.stored, step, own, piece):
        return
    base = bench.reader.base(step, piece)
    tensors = bench.reader.experts(step, piece, base, method.acts_on)
    own.observe(*_place(step, piece)[:2], tensors)


def _carry(bench: Bench, step: Step, piece: Piece) -> tuple[int, int]:
    """Copy a piece of the layout's own tensor; how many of its entries are NaN and infinite."""
    stored = bench.reader.carried(step, piece)
    if stored is not None:
        bench.put_bytes(step, piece.start, stored)
        return bad_stored(stored, step.spec.dtype)
    start, stop = step.first + piece.start, step.first + piece.stop
    tensor = bench.work.layout.read_part(step.spec.name, start, stop)
    nans = infinities = 0
    floating = tensor.is_floating_point() and tensor.element_size() > 1
    if floating and not math.isfinite(float(tensor.sum(dtype=torch.float64))):
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    bench.put(step, piece.start, tensor, kept=True)
    return nans, infinities


def cast_result(
    tensor: Tensor, code: str, name: str, *, kept: bool = False, merged: bool = True
) -> Tensor:
    """The tensor in the format of `code`; NonFiniteError where a value is too large for it.

    With `kept` infinity and NaN that are there already stay: attention masks hold them. Only what
    is `merged` can be made smaller.
    """
    dtype = dtypes.torch_dtype(code)
    if code in FORMATS and kernels_take(tensor):
        result = torch.empty(tensor.shape, dtype=dtype)
        if cast(tensor.contiguous().numpy(), FORMATS[code], stored_bytes(result)):
            return result
    result = tensor.to(dtype)
    if not tensor.numel() or (result is tensor and kept) or not dtype.is_floating_point:
        return result
    least, greatest = (float(bound) for bound in torch.aminmax(tensor))
    # NaN fails this comparison too.
    if max(-least, greatest) <= torch.finfo(dtype).max:
        return result
    sound = tensor.isfinite() if kept else torch.ones_like(tensor, dtype=torch.bool)
    if bool((result.isfinite() | ~sound).all()):
        return result
    remedies = ["merge with a smaller lambda or smaller weights"] if merged else []
    if not merged or dtype == torch.float16 or not bool(tensor.isfinite().all()):
        remedies.append("write bfloat16 or float32 with --dtype (dtype=)")
    raise NonFiniteError(
        f"a value is too large for {dtypes.torch_name(code)}",
        tensor=name,
        source="the result",
        remedy=", or ".join(remedies),
    )
