"""Blocks of unlike kinds in one stack: whether a result has each where its model looks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from magmerge.core.assembly import Anatomy, Seat
from magmerge.core.errors import Fault, shortened
from magmerge.core.types import TensorSpec

Kind = frozenset[tuple[str, tuple[int, ...]]]
"""The names and shapes of a block's tensors."""
Kinds = Mapping[int, Kind]
WIDTHS = "give models of one architecture and one size: blocks of other shapes cannot be put beside"
PLACES = (
    "choose ranges that leave blocks of each kind at the places where the model has them: its "
    "config.json does not tell of what kind each block is"
)
ALIKE = "choose ranges in which the models have blocks of the same kinds, one after the other"


def kinds_of_blocks(specs: Mapping[str, TensorSpec], anatomy: Anatomy, stack: str) -> Kinds:
    """The kind of each block of a stack."""
    kinds: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for name, spec in specs.items():
        block = anatomy.block(name)
        if block is not None and block.stack == stack:
            kinds.setdefault(block.number, set()).add((block.inner, spec.shape))
    return {number: frozenset(kind) for number, kind in kinds.items()}


def width_faults(
    seats: Sequence[Seat], models: Mapping[str, Kinds], main: str, stack: str
) -> list[Fault]:
    """Models with tensors in blocks that have other shapes than those of the main model, or of the
    other models of their place.
    """
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for kind in models[main].values():
        for inner, shape in kind:
            shapes.setdefault(inner, set()).add(shape)
    faults: dict[tuple[int, str], Fault] = {}
    for seat in seats:
        for name, number in seat.own.items():
            odd = sorted(
                (inner, shape)
                for inner, shape in models[name].get(number, ())
                if shape not in shapes.get(inner, {shape})
            )
            if odd and name != main:
                inner, shape = odd[0]
                told = " or ".join(str(list(own)) for own in sorted(shapes[inner]))
                text = (
                    f"slice {seat.slice}: {inner} of {stack}.{number} has shape {list(shape)} in "
                    f"{name}, {told} in {main}"
                )
                faults.setdefault((seat.slice, name), Fault(text, WIDTHS))
    return list(faults.values())


def mixture_faults(seats: Sequence[Seat], models: Mapping[str, Kinds], stack: str) -> list[Fault]:
    """Slices whose models have blocks of unlike kinds at one place."""
    faults: dict[int, Fault] = {}
    for seat in seats:
        (first, number), *others = seat.own.items()
        names = {inner for inner, _ in models[first].get(number, ())}
        for other, own in others:
            unlike = names ^ {inner for inner, _ in models[other].get(own, ())}
            if unlike:
                text = (
                    f"slice {seat.slice}: {stack}.{number} of {first} and {stack}.{own} of {other} "
                    f"have not the same tensors: {shortened(sorted(unlike))}"
                )
                faults.setdefault(seat.slice, Fault(text, ALIKE))
    return list(faults.values())


def place_faults(
    seats: Sequence[Seat],
    models: Mapping[str, Kinds],
    main: str,
    stack: str,
    traits: Callable[[int], Hashable],
) -> list[Fault]:
    """Blocks that stand where the main model would build another kind.

    `traits` is what the config tells of each of its blocks, and is rebuilt for the result.
    """
    kinds = [models[main].get(number, frozenset()) for number in range(max(models[main]) + 1)]
    moved = [place for place, seat in enumerate(seats) if {*seat.own.values()} != {place}]
    if len(set(kinds)) < 2 or (not moved and len(seats) == len(kinds)):
        return []
    told: dict[Hashable, set[Kind]] = {}
    for number, kind in enumerate(kinds):
        told.setdefault(traits(number), set()).add(kind)
    if all(len(own) == 1 for own in told.values()):
        return []
    faults: dict[int, Fault] = {}
    for place, seat in enumerate(seats):
        name, number = next(iter(seat.own.items()))
        own, there = models[name].get(number), _kind_at(kinds, place, len(seats))
        if own != there:
            text = (
                f"slice {seat.slice}: block {number} of {name} would be {stack}.{place}, where a "
                f"model with {len(seats)} blocks has one of another kind"
            )
            faults.setdefault(seat.slice, Fault(text, PLACES))
    return list(faults.values())


def _kind_at(kinds: Sequence[Kind], place: int, count: int) -> Kind | None:
    """The kind of a block in a stack of `count`, as one of other length has its kinds; None where
    that does not tell it.
    """
    if kinds[-1] not in kinds[:-1]:
        if place == count - 1:
            return kinds[-1]
        kinds = kinds[:-1]
    if place < len(kinds):
        return kinds[place]
    for period in range(1, len(kinds) // 2 + 1):
        if all(one == other for one, other in zip(kinds, kinds[period:], strict=False)):
            return kinds[place % period]
    return kinds[-1] if len(kinds) > 1 and kinds[-1] == kinds[-2] else None
