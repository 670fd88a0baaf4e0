"""Where each block of a result is from: slices of a recipe against the stacks that models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from magmerge.core.errors import Fault, ParameterError, suggestion
from magmerge.core.recipe import Slice
from magmerge.core.stacks import Block, before_blocks, block_of, numbers_of, roles, stack_named
from magmerge.core.types import TensorSpec

BASE = "base"
PINNED = frozenset({"relative_attention_bias", "rel_attn_embed", "pre_ln"})
"""Parts of names of what only a stack's first block holds, for all of them."""

Specs = Mapping[str, TensorSpec]


class Seat(NamedTuple):
    """A block of the result: the number of its slice from 1, and which of its own blocks each model
    gives that has a part in it. `base`: the expert that is the base here.
    """

    slice: int
    own: Mapping[str, int]
    base: str | None


Seats = Mapping[str, Sequence[Seat]]
"""The blocks of each stack that is made of slices."""


def seats_of(
    slices: Sequence[Slice], models: Mapping[str, Specs], main: Specs
) -> tuple[Seats, list[Fault]]:
    """The blocks that slices give, and all that is wrong with what they say.

    `models` are the tensors of each model by its name in the recipe, `main` those whose stacks are
    named.
    """
    seats: dict[str, list[Seat]] = {}
    faults: list[Fault] = []
    blocks = {name: numbers_of(specs) for name, specs in models.items()}
    for number, slice_ in enumerate(slices, start=1):
        wrong = _names(number, slice_, models)
        try:
            stack = stack_named(main, slice_.stack)
        except ParameterError as error:
            wrong.append(Fault(f"slice {number}: {error.problem}", error.remedy or ""))
            stack = ""
        ranges: dict[str, range] = {}
        for name, layers in slice_.layers.items() if not wrong else ():
            own = blocks[name].get(stack, set())
            wrong += _range(f"slice {number}", name, layers, (stack, own))
            ranges[name] = range(*(layers or (0, max(own, default=-1) + 1)))
        if not wrong and len({len(each) for each in ranges.values()}) > 1:
            told = ", ".join(f"{len(each)} of {name}" for name, each in ranges.items())
            remedy = "give each model of a slice as many blocks: layers: {a: [0, 4], b: [4, 8]}"
            wrong.append(Fault(f"slice {number} takes unequal numbers of blocks: {told}", remedy))
        faults += wrong
        if not wrong:
            rows = zip(*ranges.values(), strict=True)
            parts = [dict(zip(ranges, row, strict=True)) for row in rows]
            seats.setdefault(stack, []).extend(Seat(number, row, slice_.base) for row in parts)
    return seats, faults


def _names(number: int, slice_: Slice, models: Mapping[str, Specs]) -> list[Fault]:
    """Models that a slice names, and the recipe has not."""
    faults = []
    for name in slice_.layers:
        if name not in models:
            remedy = suggestion(name, models)
            if name == BASE:
                remedy = "name the base: base: PATH, or drop it from the slice"
            faults.append(
                Fault(f"slice {number} names {name!r}, and no model is called so", remedy)
            )
    if not slice_.layers:
        faults.append(Fault(f"slice {number} has no layers", "name models: layers: {a: [0, 8]}"))
    if slice_.base is not None and slice_.base not in slice_.layers:
        remedy = f"name its blocks among the layers of that slice: {{{slice_.base}: [0, 8]}}"
        if slice_.base not in models:
            remedy = suggestion(slice_.base, models)
        told = f"the base of slice {number}, {slice_.base!r}, has no layers in it"
        faults.append(Fault(told, remedy))
    return faults


def _range(
    slice_: str, name: str, layers: tuple[int, int] | None, stack: tuple[str, Collection[int]]
) -> list[Fault]:
    """What is wrong with the range of one model, in a stack with blocks of these numbers."""
    word, numbers = stack
    count = max(numbers, default=-1) + 1
    if not count:
        return [Fault(f"{slice_}: {name} has no blocks {word}.N", f"drop {name} from this slice")]
    start, stop = layers or (0, count)
    told = f"{slice_} takes blocks {start} to {stop} of {name}"
    within = f"{word} of {name} has {count} blocks"
    if start < 0 or stop > count:
        return [Fault(f"{told}, and {within}", f"give a range within [0, {count}]")]
    if stop <= start:
        remedy = f"write the first, and the one after the last: [{start}, {max(start + 1, count)}]"
        if start >= count:
            remedy = f"give a range within [0, {count}]"
        return [Fault(f"{told}, which are none", remedy)]
    if sum(start <= number < stop for number in numbers) < stop - start:
        lacking = next(number for number in range(start, stop) if number not in numbers)
        remedy = "give a range of blocks that are there; magmerge inspect lists them"
        return [Fault(f"{told}, which has no {word}.{lacking}", remedy)]
    return []


class Anatomy:
    """Which of a model's tensors are in blocks that slices move, and to which stack others belong.

    What stands outside of blocks belongs to the stack whose name has most in common with its own:
    before the blocks, or after them. Where several have as much, to the main one, or before to the
    first and after to the last. Numbered layers of which no two are alike are no stack.
    """

    def __init__(self, specs: Specs, sliced: Sequence[str]) -> None:
        self.sliced = frozenset(sliced)
        # A model with experts has many names, and each is looked up for every model.
        self._blocks: dict[str, Block | None] = {}
        self.stacks = self.sliced | _repeating(specs)
        self.pinned = frozenset(name for name in specs if _is_pinned(name, specs))
        try:
            self._main = stack_named(specs, None)
        except ParameterError:
            self._main = ""

    def block(self, name: str) -> Block | None:
        """The block of a tensor that moves with it; None for all others."""
        if name not in self._blocks:
            block = None if name in self.pinned else block_of(name)
            moves = block is not None and block.stack in self.sliced
            self._blocks[name] = block if moves else None
        return self._blocks[name]

    def owner(self, name: str) -> tuple[str, bool] | None:
        """The sliced stack that a tensor outside of blocks belongs to, and whether before its
        blocks; None for one in a block, or of another stack.
        """
        block, first = block_of(name), before_blocks(name) or name in self.pinned
        if name not in self.pinned:
            inside = block is not None and block.stack in self.stacks
            near = [] if inside else self._nearest(name)
            stack = (
                self._main if self._main in near else next(iter(near[:: 1 if first else -1]), "")
            )
        else:
            stack = "" if block is None else block.stack
        return (stack, first) if stack in self.sliced else None

    def _nearest(self, name: str) -> list[str]:
        """The stacks that have most in common with a name, encoders before decoders."""
        parts, own = name.split("."), roles(name)
        shared = {
            stack: (_common(parts, stack.split(".")), len(own & roles(stack)))
            for stack in self.stacks
        }
        most = max(shared.values(), default=0)
        near = [stack for stack, common in shared.items() if common == most]
        return sorted(near, key=lambda stack: ("decoder" in roles(stack), stack))


def _repeating(specs: Specs) -> frozenset[str]:
    """The stacks that have two blocks of the same tensors."""
    kinds: dict[tuple[str, int], set[tuple[str, tuple[int, ...]]]] = {}
    for name, spec in specs.items():
        block = block_of(name)
        if block is not None:
            kinds.setdefault(block[:2], set()).add((block.inner, spec.shape))
    seen = Counter((stack, frozenset(kind)) for (stack, _), kind in kinds.items())
    return frozenset(stack for (stack, _), count in seen.items() if count > 1)


def _common(parts: Sequence[str], others: Sequence[str]) -> int:
    """How many parts two names have in common from the start."""
    pairs = zip(parts, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_pinned(name: str, specs: Specs) -> bool:
    """Whether only a stack's first block has such a tensor, for all of them."""
    if PINNED.isdisjoint(name.split(".")):
        return False
    block = block_of(name)
    return block is not None and (
        block.number == 0 and f"{block.stack}.1.{block.inner}" not in specs
    )
