"""Pieces of work on a live module, and what they find, by row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from magmerge.errors import MagmergeError
from magmerge.live.calls import placed
from magmerge.samples import Inputs


class Batch(Protocol):
    """Some rows of a task."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Their numbers in the task's data."""
        ...

    def inputs(self) -> Inputs:
        """The model's inputs, the same whenever they are asked for. Images are decoded here."""
        ...

    def measure(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """What the module makes of each row, on the CPU: one line a row. It is called once."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A task's batches, and the rows' labels, None for perplexity.

    `lazy` says that making the batches' inputs takes long, and that they take much memory.
    """

    batches: tuple[Batch, ...]
    count: int
    labels: Tensor | None
    source: str
    lazy: bool = False


def in_order(batches: Sequence[Batch], found: Sequence[Tensor]) -> Tensor:
    """The lines of all batches in the order of the rows."""
    rows = torch.tensor([row for batch in batches for row in batch.rows])
    return torch.cat(list(found))[rows.argsort()]


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
