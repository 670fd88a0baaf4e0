"""Ranges of a result's blocks: which tensors are in them, and how deep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from magmerge.core.errors import ParameterError
from magmerge.core.filters import Item
from magmerge.core.stacks import before_blocks, block_of, lengths, stack_named
from magmerge.core.types import TensorSpec


class Ranges:
    """The layers of some items among a result's tensors.

    ParameterError for an item whose stack is none, or has fewer blocks than its layers say.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], items: Iterable[Item]) -> None:
        self._lengths = lengths(specs)
        if not self._lengths:
            raise ParameterError(
                "an item is for layers, and this model has no numbered blocks",
                remedy="say which tensors it is for with filter: in place of layers:",
            )
        self._stacks: dict[str | None, str] = {}
        for item in items:
            assert item.layers is not None
            if item.stack not in self._stacks:
                self._stacks[item.stack] = stack_named(specs, item.stack)
            stack = self._stacks[item.stack]
            if item.layers[1] > self._lengths[stack]:
                raise ParameterError(
                    f"the layers {item.layers[0]} to {item.layers[1]} are not in {stack}, which "
                    f"has {self._lengths[stack]}",
                    remedy=f"end them by {self._lengths[stack]}, or name another stack with stack:",
                )

    def depth(self, item: Item, name: str) -> float | None:
        """How deep in the item's layers a tensor is, from 0 to 1 (1 in a single one); None outside.

        What is before the blocks goes with the layers from the first on, and what is outside of
        them otherwise with the layers to the last: at 0.
        """
        assert item.layers is not None
        stack, (first, end) = self._stacks[item.stack], item.layers
        block = block_of(name)
        if block is None:
            near = first == 0 if before_blocks(name) else end == self._lengths[stack]
            return 0.0 if near else None
        if block.stack != stack or not first <= block.number < end:
            return None
        return 1.0 if end - first == 1 else (block.number - first) / (end - first - 1)
