"""Batches of tasks through a live module, side by side, with progress over all of them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from magmerge import dtypes
from magmerge.device import CPU, open_device
from magmerge.evaluation.batches import Batch, Prepared, in_order
from magmerge.evaluation.tasks import Measured, measured
from magmerge.evaluation.weights import LiveModel, Weights, evaluating
from magmerge.executors import local
from magmerge.request import thread_count
from magmerge.run import Progress


class Runner:
    """Measures weights on tasks; `total` is the number of batches that progress counts to."""

    def __init__(
        self,
        live: LiveModel,
        *,
        threads: int | None,
        device: str | None,
        dtype: str | None,
        progress: Progress | None,
    ) -> None:
        open_device(device or CPU)
        self.device = device
        self.dtype = None
        if dtype is not None:
            self.dtype = dtypes.torch_dtype(dtypes.parse_float_dtype(str(dtype)))
        # A GPU runs one batch at a time by itself.
        count = thread_count(threads)
        self._threads = count if (device or CPU) == CPU else 1
        self._live, self._progress = live, progress
        self.total, self._done = 0, 0

    def measure(self, weights: Weights, metric: str, task: Prepared) -> Measured:
        """The score of these weights on a task: the same bits for any number of threads."""
        module = self._live.put(weights, self.dtype, self.device)
        jobs = (partial(_measure, module, batch) for batch in task.batches)
        with evaluating(module):
            found = local.run(local.single(jobs), threads=self._threads, done=self._count)
        return measured(metric, task, in_order(task.batches, found))

    def check(self, weights: Weights) -> None:
        """StructureError, before any long work, where the weights do not fit the module."""
        self._live.put(weights, self.dtype, self.device)

    def _count(self, _: Tensor) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress("evaluating", self._done, self.total)


@torch.inference_mode()
def _measure(module: nn.Module, batch: Batch) -> Tensor:
    return batch.measure(module)
