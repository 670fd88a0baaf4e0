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
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import Recipe
from magmerge.core.types import Step, TensorSpec
from magmerge.engine.job import Findings, Work
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.plan import make_plan
from magmerge.engine.resolve import open_job
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


def computed_again(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    machine: Machine,
    *,
    measure: Measure | None = None,
    count: int | None = SAMPLE,
) -> Check:
    """Tensors of a model, computed once more by its recipe and compared bit for bit: `count` of
    them, or all (None). With `measure` also those of a recipe with samples, and of an adapter.
    """
    if len(recipes) != 1:
        reason = "no recipe" if not recipes else "a recipe of several documents"
        return Check(NAME, seen=reason, done=False)
    recipe = recipes[0]
    whole = recipe.samples is not None or recipe.output.kind != "model"
    if whole and measure is None:
        return Check(NAME, seen="a recipe with samples, or of an adapter", done=False)
    if recipe.samples is not None and recipe.samples.build is not None:
        return Check(NAME, seen="a recipe that names code to build its model", done=False)
    away = [path for path in recipe.models.values() if not _is_at_hand(path)]
    if away:
        return Check(NAME, seen=f"not at hand: {shortened(away)}", done=False)
    sink = ComparingSink(checkpoint)
    try:
        lacking = _compared(recipe, machine, sink, measure, count)
    except (MagmergeError, OSError) as error:
        reason = getattr(error, "problem", None) or str(error)
        return Check(NAME, seen=reason.splitlines()[0], done=False)
    odd, far = sink.odd(), sink.far()
    faults = [Fault(f"the recipe gives other values for {shortened(far)}", AGAIN)] if far else []
    if lacking:
        faults.append(Fault(f"the recipe does not give {shortened(lacking)}", AGAIN))
    rounded = f"; {len(odd)} of them but for rounding, as by another build of torch" if odd else ""
    of = f" of {len(checkpoint.specs)}" if len(sink.seen) < len(checkpoint.specs) else ""
    return Check(NAME, tuple(faults), f"{len(sink.seen)}{of} tensors, bit for bit{rounded}")


def _is_at_hand(path: str) -> bool:
    """Whether a model is here, so that nothing is fetched to check another."""
    at_hand: bool = lexists(path) or load("magmerge.checkpoints.named:is_at_hand")(path)
    return at_hand


def _compared(
    recipe: Recipe,
    machine: Machine,
    sink: ComparingSink,
    measure: Measure | None,
    count: int | None,
) -> list[str]:
    """Let the sink see what the recipe gives; the model's tensors that the recipe has none of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = open_job(recipe, {}, machine=machine)
        if job.writes_adapter and measure is not None:
            tensors = run_job(job, None, measure=measure).state_dict()
            for name, tensor in tensors.items():
                code = dtypes.code_of(tensor.dtype)
                assert code is not None
                spec = TensorSpec(name, tuple(tensor.shape), code)
                sink.write(Step(spec, "other", "carry", ""), 0, stored_bytes(tensor))
            return sorted(set(sink.written.specs) - set(tensors))
        work = Work(job, make_plan(job))
        if measure is not None and recipe.samples is not None:
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
