"""How long a job's tensors would take, by doing some of them and throwing the results away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from magmerge.core import dtypes
from magmerge.core.types import Plan, Step
from magmerge.engine.job import Job, Work
from magmerge.engine.passes import bench_for, run_pass

SECONDS = 2.0
"""How long a trial goes on beginning new tensors."""
SPREAD = 0.3
"""By how much at least the time may be another, as a share of it."""
DONE = frozenset({"merge", "mean", "average", "carry"})
"""What of a plan is work: a tied tensor is written with the one that it is tied to."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured: so many of the result's tensors, of so many bytes, in so many seconds; and
    what that makes of all `total` bytes: between `least` and `most` seconds.
    """

    tensors: int
    measured: int
    seconds: float
    total: int
    least: float
    most: float


class NoSink:
    """Takes what is finished, and keeps nothing of it."""

    def write(self, *_: object) -> None:
        return None

    def write_parts(self, *_: object) -> None:
        return None


def trial(job: Job, plan: Plan, seconds: float = SECONDS) -> Trial | None:
    """Merge some tensors from all over the model for about so long: ever more at a time, until the
    time is up or all are done. Nothing is written, digested or run on samples. None where a result
    is no whole model, or nothing is to be done.
    """
    steps = [step for step in plan.steps if step.action in DONE and step.twin is None]
    total = sum(_size(step) for step in steps)
    if job.writes_adapter or not total:
        return None
    # Every so many'th tensor first, so that all kinds of layers are among the few that are done.
    stride = max(1, len(steps) // 16)
    order = [step for first in range(stride) for step in steps[first::stride]]
    job = replace(job, machine=replace(job.machine, progress=None))
    # Once without a clock: the first tensor also loads what the method needs.
    _seconds(job, plan, [min(steps, key=_size)])
    rates, spent, done, measured = list[float](), 0.0, 0, 0
    while done < len(order) and spent < seconds:
        batch = order[done : done + max(1, done)]
        took, size = _seconds(job, plan, batch), sum(map(_size, batch))
        rates.append(took / max(1, size))
        spent, done, measured = spent + took, done + len(batch), measured + size
    # The first batches are the smallest: what a tensor costs beside its bytes counts most there.
    later = rates[len(rates) // 2 :] if done < len(order) else [spent / total]
    least, most = total * min(later) * (1 - SPREAD), total * max(later) * (1 + SPREAD)
    return Trial(done, measured, spent, total, least, most)


def _seconds(job: Job, plan: Plan, steps: Sequence[Step]) -> float:
    """How long some of a plan's steps take, with what has to be known of them before."""
    begun = time.monotonic()
    run_pass(bench_for(Work(job, replace(plan, steps=tuple(steps))), NoSink()), quiet=True)
    return time.monotonic() - begun


def _size(step: Step) -> int:
    return dtypes.nbytes(step.spec)
