"""Sums over what an expert's layers are fed on its samples, handed over layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from torch import Tensor

from magmerge.core.types import Uncovered
from magmerge.data.rows import Inputs
from magmerge.engine.job import Work
from magmerge.live.gains import Sums, conclude
from magmerge.live.layers import Layer
from magmerge.live.measured_gains import check_gains
from magmerge.live.measurement import Measurement
from magmerge.live.module_weights import at_rest


def gather_sums(
    work: Work, inputs: Mapping[str, Sequence[Inputs]], keep: Callable[[str, Tensor], None]
) -> tuple[Uncovered, ...]:
    """Run the work's one expert on its samples; `keep` takes each weight's sums as they are whole.

    Returns the layers that cannot be solved for from inputs.
    """
    run = Measurement(work)
    calls = {run.experts.index(name): list(batches) for name, batches in inputs.items()}
    offload = nullcontext() if run.merge.offload is None else run.merge.offload.running()

    def hand_over(layer: Layer, sums: Sums) -> None:
        taken, weight = sums.take_inputs(layer.name, 1), layer.tensors.get("weight")
        if taken is not None and weight is not None:
            keep(weight, taken[0])

    with at_rest(run.merge.model), run.experts_beside(), offload:
        sums = run.forward(calls, hand_over)
    result = conclude(run.layers, run.uncovered, sums, 1)
    check_gains(result, dict(enumerate(run.experts)))
    return tuple(result.uncovered)
