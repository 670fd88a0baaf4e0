"""A written model against its recipe: its tensors, computed once more and compared as they come."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import lexists
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.load_checks import Check
from magmerge.checkpoints.output.writer import entries_of, stored_bytes
from magmerge.core import dtypes
from magmerge.core.errors import Fault, MagmergeError, shortened
from magmerge.core.lazy import Tensor, load, torch
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import Recipe
from magmerge.core.types import Step, TensorSpec
from magmerge.engine.job import Findings, Job, Live, Work
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.plan import make_plan
from magmerge.engine.run import run_job, with_findings
from magmerge.engine.samples import inputs_of
from magmerge.engine.verification import AGAIN

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

NAME = "computed again"
SAMPLE = 8
"""Tensors that are computed again where not all of them are."""
UNITS = 16
"""In the last place of a tensor's largest value, by which processors differ."""
Measure = Callable[[Work, Mapping[str, Any]], Findings]


@dataclass
class _Difference:
    """How far a tensor is from the written one: the largest difference and the largest value."""

    apart: float = 0.0
    largest: float = 0.0
    differs: bool = False


class ComparingSink:
    """Compares what comes with a written model: nothing of it is kept."""

    def __init__(self, written: Checkpoint) -> None:
        self.written, self._lock = written, threading.Lock()
        self.seen: dict[str, _Difference] = {}

    def write(self, step: Step, start: int, part: Bytes) -> None:
        """Take the stored bytes of the step's tensor from its entry `start` on."""
        spec, code = step.tensor, step.spec.dtype
        with self._lock:
            known = self.seen.setdefault(spec.name, _Difference())
        if self.written.specs.get(spec.name) != TensorSpec(spec.name, spec.shape, code):
            known.differs, known.apart = True, math.inf
            return
        stop = start + len(part) // dtypes.width(code)
        other = self.written.read_part(spec.name, start, stop)
        mine = entries_of(part, code)
        if stop == start:
            return
        same = bool((stored_bytes(other) == part).all())
        apart = 0.0 if same else float((_wide(mine) - _wide(other)).abs().max())
        largest = float(_wide(mine).abs().max())
        with self._lock:
            known.differs |= not same
            known.largest = max(known.largest, largest)
            known.apart = max(known.apart, math.inf if math.isnan(apart) else apart)

    def write_parts(self, step: Step, parts: Sequence[tuple[int, Bytes]]) -> None:
        """The same of many parts, each with its start."""
        for start, part in parts:
            self.write(step, start, part)

    def odd(self) -> list[str]:
        """Tensors with other bits."""
        return [name for name, known in self.seen.items() if known.differs]

    def far(self) -> list[str]:
        """Those that are not the same but for a few units in the last place."""
        return [name for name in self.odd() if not self._near(name, self.seen[name])]

    def _near(self, name: str, known: _Difference) -> bool:
        if math.isinf(known.apart):
            return False
        kind = dtypes.torch_dtype(self.written.specs[name].dtype)
        eps = torch.finfo(kind).eps if kind.is_floating_point else 0.0
        return known.apart <= UNITS * eps * known.largest


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else tensor.double()


def hindrance(recipes: Sequence[Recipe], live: Live | None = None) -> str | None:
    """Why tensors cannot be computed again by these documents; None where they can.

    Without `live` only merges of one document from weights alone are, which are soon done; with it
    all are but those that name code, unless it lets that be called.
    """
    if not recipes:
        return "no recipe"
    last = recipes[-1]
    if live is None and len(recipes) > 1:
        return "a recipe of several documents"
    if live is None and (last.samples is not None or last.output.kind != "model"):
        return "a recipe with samples, or of an adapter"
    code = any(own.samples is not None and own.samples.build for own in recipes)
    if code and live is not None and not live.build:
        return "a recipe that names code to build its model, which is called with --allow-code"
    names = {own.name for own in recipes[:-1]}
    paths = [path for own in recipes for path in own.models.values() if path not in names]
    away = [path for path in dict.fromkeys(paths) if not _is_at_hand(path)]
    return f"not at hand: {shortened(away)}" if away else None


def computed_again(
    checkpoint: Checkpoint,
    job: Job,
    *,
    measure: Measure | None = None,
    count: int | None = SAMPLE,
) -> Check:
    """Tensors of a model, computed once more by its job and compared bit for bit: `count` of them,
    or all (None). With `measure` also those of a recipe with samples, and of an adapter.
    """
    sink = ComparingSink(checkpoint)
    try:
        lacking = _compared(job, sink, measure, count)
    except (MagmergeError, OSError) as error:
        return Check(NAME, seen=first_line(error), done=False)
    odd, far = sink.odd(), sink.far()
    faults = [Fault(f"the recipe gives other values for {shortened(far)}", AGAIN)] if far else []
    if lacking:
        faults.append(Fault(f"the recipe does not give {shortened(lacking)}", AGAIN))
    rounded = f"; {len(odd)} of them but for rounding, as by another build of torch" if odd else ""
    of = f" of {len(checkpoint.specs)}" if len(sink.seen) < len(checkpoint.specs) else ""
    return Check(NAME, tuple(faults), f"{len(sink.seen)}{of} tensors, bit for bit{rounded}")


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    text: str = getattr(error, "problem", None) or str(error)
    return text.splitlines()[0]


def _is_at_hand(path: str) -> bool:
    """Whether a model is here, so that nothing is fetched to check another."""
    at_hand: bool = lexists(path) or load("magmerge.checkpoints.named:is_at_hand")(path)
    return at_hand


def _compared(
    job: Job, sink: ComparingSink, measure: Measure | None, count: int | None
) -> list[str]:
    """Let the sink see what the job gives; the model's tensors that it gives none of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if job.writes_adapter and measure is not None:
            tensors = run_job(job, None, measure=measure).state_dict()
            for name, tensor in tensors.items():
                code = dtypes.code_of(tensor.dtype)
                assert code is not None
                spec = TensorSpec(name, tuple(tensor.shape), code)
                sink.write(Step(spec, "other", "carry", ""), 0, stored_bytes(tensor))
            return sorted(set(sink.written.specs) - set(tensors))
        work = Work(job, make_plan(job))
        if measure is not None and job.recipe.samples is not None:
            work = with_findings(work, measure(work, inputs_of(job)))
        names = _names(work, every=measure is not None)
        chosen = names if count is None else names[:: max(1, len(names) // count)][:count]
        keys = {step.key for step in work.plan.steps if step.spec.name in set(chosen)}
        run_pass(bench_for(work, sink), keys, quiet=True)
        own = {step.spec.name for step in work.plan.steps}
    return sorted(set(sink.written.specs) - own)


def _names(work: Work, *, every: bool) -> list[str]:
    """Tensors that can be computed again, each once: every one, or those that are merged."""
    actions = ("merge", "mean", *(["carry"] if work.job.recipe.moe is not None else []))
    measured = getattr(work.layout, "routers", ())
    names = dict.fromkeys(
        step.spec.name
        for step in work.plan.steps
        if (every or step.action in actions) and step.spec.name not in measured
        if step.twin is None
    )
    return list(names)
