"""What a calibration from samples finds: its factors or task vectors, and whether they helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from magmerge.data.halves import Halves, halves
from magmerge.data.rows import Inputs
from magmerge.engine.job import Findings, Work
from magmerge.live.checking import HeldRows, NoRoomError, by_place, held_rows
from magmerge.live.gains import conclude
from magmerge.live.measured_gains import check_gains, gains_by_rows
from magmerge.live.measurement import Measurement
from magmerge.live.module_weights import at_rest
from magmerge.live.running_statistics import reestimate
from magmerge.live.verdict import no_verdict, verdict_of

REUSED = 32 * 1024**2 - 8192
"""Just below the largest size that glibc learns (DEFAULT_MMAP_THRESHOLD_MAX)."""
Calls = Mapping[str, Sequence[Inputs]]
NOTHING: Calls = MappingProxyType({})


def estimate(work: Work, inputs: Calls, further: Calls = NOTHING) -> Findings:
    """Merge into a live model, run it on each expert's inputs, measure its layers, and look on rows
    kept aside what came of it: half of the inputs where a check needs them, else `further` rows.

    The deltas of one layer at a time are in memory, those of several where several threads run.
    """
    _keep_blocks()
    samples, halved = work.job.recipe.samples, None
    assert samples is not None
    if work.stages.treatment.checked:
        halved = halves(inputs)
        inputs = halved.estimate
    held = further if halved is None else halved.aside
    aside = held_rows(work, held) if held else None
    run = None
    try:
        run = Measurement(work, aside)
    except NoRoomError:
        # A check needs these rows; a verdict alone is no reason to stop.
        if halved is not None:
            raise
    if run is None:
        # Not before the exception is gone, which holds the first model.
        aside, run = None, Measurement(work)
    calls = by_place(run.experts, inputs)
    offload = nullcontext() if run.merge.offload is None else run.merge.offload.running()
    with at_rest(run.merge.model), run.experts_beside(), offload:
        if halved is None and aside is not None:
            aside.look_at(run.merge.model, "merge")
        sums = run.measure(calls, samples.order)
        result = conclude(run.layers, run.uncovered, sums, len(run.experts))
        gains = gains_by_rows(run.steps, result.gains)
        check_gains(result._replace(gains=gains), {k: run.experts[k] for k in calls})
        shares, told, statistics = _concluded(run, calls, gains, halved, aside)
    rows = {name: sum(call.rows for call in own) for name, own in held.items()}
    shared = () if halved is None else halved.shared
    verdict = no_verdict(held) if aside is None else verdict_of(aside.seen, rows, shared)
    return Findings(gains, run.deltas, statistics, tuple(result.uncovered), shares, told, verdict)


def _concluded(
    run: Measurement,
    calls: Mapping[int, Sequence[Inputs]],
    gains: Mapping[str, Tensor],
    halved: Halves | None,
    aside: HeldRows | None,
) -> tuple[dict[str, float], dict[str, Any], Mapping[str, Tensor]]:
    """How much of its factors each tensor keeps, what a check tells, and statistics taken anew; the
    model is looked at as it is in the end.
    """
    shares, told, statistics = dict[str, float](), dict[str, Any](), dict[str, Tensor]()
    samples, model = run.work.job.recipe.samples, run.merge.model
    assert samples is not None
    if halved is not None and aside is not None:
        shares, told = run.check(gains, calls, halved, aside)
    elif samples.order == "once" and (samples.batchnorm or aside is not None):
        run.apply(gains)
    if samples.batchnorm:
        statistics = {
            name: tensor
            for name, tensor in reestimate(model, calls, run.merge.names).items()
            if run.steps[name].action == "average" or run.steps[name].reason == "statistics"
        }
    if halved is None and aside is not None:
        aside.look_at(model, "calibrated")
    return shares, told, statistics


def _keep_blocks() -> None:
    """Let the C library keep freed blocks up to REUSED bytes, where it is glibc.

    It learns from the largest block that was freed. Without that each output of a layer is given
    back to the system, and its pages are asked for anew, which takes longer than to fill them.
    """
    torch.empty(REUSED, dtype=torch.uint8)
