"""Batches of tasks through live modules, side by side, with progress over all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.core import dtypes
from magmerge.core.errors import MagmergeError
from magmerge.core.machine import CPU, Machine
from magmerge.data.rows import Inputs
from magmerge.engine.executors import local
from magmerge.evaluation.live_model import Hardware, LiveModel, ModelWeights, evaluating
from magmerge.live.calls import placed

AHEAD = 2
"""Batches for each worker that are made, or being made, before the model asks for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows of a task, by their numbers.

    `inputs` makes a module's inputs, and decodes images; `measure` calls the module once and gives
    what it makes of each row, on the CPU: one line a row.
    """

    rows: tuple[int, ...]
    inputs: Callable[[], Inputs]
    measure: Callable[[nn.Module, Inputs], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A task's batches, its number of rows, and their labels, None for perplexity."""

    batches: tuple[Batch, ...]
    count: int
    labels: Tensor | None
    source: str


def batches_ahead(
    batches: Sequence[Batch], pool: ThreadPoolExecutor, workers: int
) -> Iterator[tuple[Batch, Future[Inputs]]]:
    """Each batch with its inputs, which `pool` makes in time but not far ahead.

    At most AHEAD * workers of them are made and not yet taken. Each is made as a whole by one
    thread, so that it is the same for any number of them.
    """
    waiting: deque[tuple[Batch, Future[Inputs]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(batch.inputs)))
        if len(waiting) > AHEAD * workers:
            yield waiting.popleft()
    yield from waiting


def copy_of(inputs: Inputs) -> Inputs:
    """Inputs that a model may change in place: the next one gets them as they were."""

    args = tuple(part.clone() if isinstance(part, Tensor) else part for part in inputs.args)
    kwargs = {
        key: part.clone() if isinstance(part, Tensor) else part
        for key, part in inputs.kwargs.items()
    }
    return Inputs(args, kwargs, inputs.rows)


def forward(module: nn.Module, inputs: Inputs) -> Any:
    """The module's output for inputs on its own device, in its own floating-point format."""
    args, kwargs = placed(inputs, module)
    try:
        return module(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        shapes = [*map(_shape, inputs.args)]
        shapes += [f"{name}={_shape(value)}" for name, value in kwargs.items()]
        raise MagmergeError(
            f"the model fails on inputs {', '.join(shapes)}: {str(error).partition(chr(10))[0]}",
            source=type(module).__name__,
            remedy="check that model class and data of the suite belong together",
        ) from error


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


class Runner:
    """Measures models on tasks; `total` is the number of batches that progress counts to."""

    def __init__(self, lives: list[LiveModel], machine: Hardware, total: int) -> None:
        self._lives, self._machine, self._total, self._done = lives, machine, total, 0

    def groups(self, models: Sequence[ModelWeights]) -> Iterator[list[nn.Module]]:
        """As many of the models at once as fit into memory, at least one, until none is left.

        A group must be done with before the next is asked for, whose models take its places.
        """
        room, left = dtypes.parse_size(self._machine.memory), list(models)
        while left:
            sizes = accumulate(weights.size(self._machine.format) for weights in left)
            count = max(1, sum(size <= room for size in sizes))
            while len(self._lives) < count:
                self._lives.append(self._lives[0].another())
            group, left = left[:count], left[count:]
            yield [
                live.put(weights, self._machine)
                for live, weights in zip(self._lives, group, strict=False)
            ]

    def answers(self, modules: Sequence[nn.Module], task: Prepared) -> list[Tensor]:
        """What each module makes of each row, in one pass: the same bits for any threads."""

        @torch.inference_mode()
        def call(batch: Batch, inputs: Future[Inputs]) -> list[Tensor]:
            return [batch.measure(module, copy_of(inputs.result())) for module in modules]

        workers = Machine(self._machine.workers).count
        # A GPU runs one batch at a time by itself.
        on_cpu = (self._machine.device or CPU) == CPU
        lanes = Machine(self._machine.threads).count if on_cpu else 1
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(evaluating(module))
            pool = stack.enter_context(ThreadPoolExecutor(workers))
            jobs = (partial(call, *job) for job in batches_ahead(task.batches, pool, workers))
            lines = local.run(local.single(jobs), Machine(lanes), done=self._count)
        # From the order of the batches to that of the rows.
        order = torch.tensor([row for batch in task.batches for row in batch.rows]).argsort()
        return [torch.cat(own)[order] for own in zip(*lines, strict=True)]

    def _count(self, lines: Sequence[Tensor]) -> None:
        self._done += len(lines)
        self._machine.tell("evaluating", self._done, self._total)
