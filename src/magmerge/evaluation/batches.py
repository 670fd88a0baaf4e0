"""Batches of a task: rows, the inputs of one call of a module, and what is read of its output."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError
from magmerge.data import Inputs
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


def in_order(batches: Sequence[Batch], lines: Sequence[Tensor]) -> Tensor:
    """The lines of all batches in the order of the rows."""
    rows = torch.tensor([row for batch in batches for row in batch.rows])
    return torch.cat(list(lines))[rows.argsort()]


def copied(inputs: Inputs) -> Inputs:
    """Inputs that a model may change in place: the next one gets them as they were."""

    def copy(part: Any) -> Any:
        return part.clone() if isinstance(part, Tensor) else part

    kwargs = {key: copy(part) for key, part in inputs.kwargs.items()}
    return Inputs(tuple(map(copy, inputs.args)), kwargs, inputs.rows)


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


def takes(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has a parameter of this name."""
    return name in inspect.signature(module.forward).parameters


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
