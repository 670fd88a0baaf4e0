"""Batches of tasks through live modules, side by side, with progress over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from magmerge import dtypes
from magmerge.device import open_device
from magmerge.errors import ParameterError
from magmerge.evaluation.batches import Batch, Prepared, in_order
from magmerge.evaluation.decoding import Ahead, Kept
from magmerge.evaluation.sharing import Relay
from magmerge.evaluation.weights import LiveModel, Weights, evaluating
from magmerge.executors import local
from magmerge.machine import CPU, Machine, Progress
from magmerge.samples import Inputs

LEAST_SHARED = 1 << 28
"""Bytes for outputs of shared layers, also where the models fill all memory."""


class Group(NamedTuple):
    """Modules that are measured in one pass, and the relay between them if they share layers."""

    modules: Sequence[nn.Module]
    relay: Relay | None = None


class Runner:
    """Measures models on tasks; `total` is the number of batches that progress counts to."""

    def __init__(
        self,
        live: LiveModel,
        kept: Kept,
        *,
        threads: int | None,
        workers: int | None,
        device: str | None,
        dtype: str | None,
        memory: str | int,
        progress: Progress | None,
    ) -> None:
        open_device(device or CPU)
        self.device = device
        self.dtype = None
        if dtype is not None:
            self.dtype = dtypes.torch_dtype(dtypes.parse_float_dtype(str(dtype)))
        self.room = dtypes.parse_size(memory)
        # A GPU runs one batch at a time by itself.
        count = Machine(threads).count
        self._threads = count if (device or CPU) == CPU else 1
        self._workers = worker_count(workers)
        self._live, self._kept, self._progress = live, kept, progress
        self._tasks: tuple[Prepared, ...] = ()
        self.total, self._done = 0, 0

    def begin(self, tasks: Iterable[Prepared]) -> None:
        """What is measured next; decoded batches of other tasks make room for those of these."""
        self._tasks = tuple({id(task): task for task in tasks}.values())

    def answer(self, weights: Weights, task: Prepared) -> Tensor:
        """What one model makes of each row: the same bits for any number of threads."""
        self._keep([weights])
        module = self._live.put(weights, self.dtype, self.device)
        return self.answers(Group([module]), task)[0]

    def answers(self, group: Group, task: Prepared) -> list[Tensor]:
        """The same for each module of a group, in one pass over the batches."""
        jobs = self._jobs_of(group)
        with ExitStack() as stack:
            ahead = stack.enter_context(Ahead(task, self._kept, self._workers))
            for module in group.modules:
                stack.enter_context(evaluating(module))
            if group.relay is not None:
                stack.enter_context(group.relay.watched())
            calls = (
                partial(jobs, batch, ahead.take(number))
                for number, batch in enumerate(task.batches)
            )
            found = local.run(local.single(calls), threads=self._threads, done=self._count)
        return [in_order(task.batches, own) for own in zip(*found, strict=True)]

    def groups(self, waiting: Sequence[Weights]) -> Iterator[Group]:
        """As many of the models at once as fit into memory, at least one, until none is left.

        What they leave is for decoded batches. A group must be done with before the next is asked
        for, whose models take the places of its own.
        """
        lives, left = [self._live], list(waiting)
        while left:
            count = 1
            while count < len(left) and self._size(left[: count + 1]) <= self.room:
                count += 1
            chosen, left = left[:count], left[count:]
            self._keep(chosen)
            yield self._group(chosen, lives)

    def check(self, waiting: Sequence[Weights]) -> None:
        """StructureError, before any long work, where weights do not fit the module."""
        self._live.put(waiting[0], self.dtype, self.device)
        for weights in waiting[1:]:
            self._live.check(weights, self.dtype, self.device)

    def _size(self, models: Sequence[Weights]) -> int:
        return sum(weights.size(self.dtype) for weights in models)

    def _keep(self, models: Sequence[Weights]) -> None:
        self._kept.begin(self._tasks, max(0, self.room - self._size(models)))

    def _group(self, chosen: Sequence[Weights], lives: list[LiveModel]) -> Group:
        modules, taken = [], []
        free = iter(lives)
        for weights in chosen:
            if weights.module is not None:
                live = self._live
            else:
                live = next(free, None) or _one_more(lives)
                taken.append(live)
            modules.append(live.put(weights, self.dtype, self.device))
        alike = len(taken) == len(modules) > 1 and len({live.key for live in taken}) == 1
        if not alike:
            return Group(modules)
        relay = Relay(modules, self._room_of_shared(chosen))
        if relay.useful:
            self._try(relay, modules)
        return Group(modules, relay if relay.useful else None)

    def _room_of_shared(self, chosen: Sequence[Weights]) -> int:
        """Bytes of shared layers' outputs that a batch may keep: half of what the models leave."""
        left = max(LEAST_SHARED, self.room - self._size(chosen)) // 2
        return left // self._threads

    def _try(self, relay: Relay, modules: Sequence[nn.Module]) -> None:
        task, batch = self._tasks[0], self._tasks[0].batches[0]
        inputs = self._kept.get(task, 0)
        if inputs is None:
            inputs = batch.inputs()
            self._kept.put(task, 0, inputs)
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(evaluating(module))
            stack.enter_context(relay.watched())
            # Inference mode does not count changes in place, which the trial looks for.
            stack.enter_context(torch.no_grad())
            relay.trial(lambda module: batch.measure(module, _copied(inputs)))

    def _jobs_of(self, group: Group) -> Callable[[Batch, Future[Inputs]], list[Tensor]]:
        @torch.inference_mode()
        def job(batch: Batch, future: Future[Inputs]) -> list[Tensor]:
            inputs = future.result()

            def call(module: nn.Module) -> Tensor:
                return batch.measure(module, _copied(inputs))

            if group.relay is not None:
                return group.relay.run(call)
            return [call(module) for module in group.modules]

        return job

    def _count(self, found: Sequence[Tensor]) -> None:
        self._done += len(found)
        if self._progress is not None:
            self._progress("evaluating", self._done, self.total)


def _copied(inputs: Inputs) -> Inputs:
    """Inputs that a model may change in place: the next one gets them as they were."""
    args = tuple(part.clone() if isinstance(part, Tensor) else part for part in inputs.args)
    named = inputs.kwargs.items()
    kwargs = {key: part.clone() if isinstance(part, Tensor) else part for key, part in named}
    return Inputs(args, kwargs, inputs.rows)


def _one_more(lives: list[LiveModel]) -> LiveModel:
    lives.append(lives[0].another())
    return lives[-1]


def worker_count(workers: int | None) -> int:
    """The number of threads that decode, or one for each core this process may use."""
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ParameterError(f"{workers} workers", remedy="give one worker or more")
    return Machine(workers).count
