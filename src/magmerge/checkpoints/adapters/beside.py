"""What an adapter changes beside its modules' weights, as it is in a base: biases and norms that it
adds to, and rows of an embedding that it replaces.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from magmerge.checkpoints.adapters.nouns import (
    Adapter,
    Addition,
    LowRank,
    Module,
    ModuleSpec,
    TokenRows,
)
from magmerge.checkpoints.adapters.placement import Place, Placement, find
from magmerge.core.models import Checkpoint


class PlacedAddition(NamedTuple):
    """Entries [row, row + size) of what is added, and the entry of the base that is the first."""

    addition: Addition
    row: int
    at: int
    size: int

    def put(self, delta: Tensor, start: int) -> None:
        """Add it to `delta`, the flat entries of the base's tensor from `start` on."""
        first, stop = max(start, self.at), min(start + delta.numel(), self.at + self.size)
        if first < stop:
            shift = self.row - self.at
            part = self.addition.part(first + shift, stop + shift)
            delta[first - start : stop - start] += part.to(delta)


@dataclass(slots=True)
class Beside:
    """By the base's names: what is added, which rows are replaced, what the base lacks or has in
    another shape.
    """

    added: dict[str, list[PlacedAddition]] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


def placed(adapter: Adapter, base: Checkpoint, placement: Placement) -> Beside:
    """What of the adapter is beside its modules' weights, in the base."""
    beside = Beside()
    by_module: dict[str, list[Place]] = {}
    for place in (*placement.places, *_places_of_bare(adapter, base)):
        by_module.setdefault(place.module, []).append(place)
    for name, addition in adapter.added.items():
        module, _, leaf = name.rpartition(".")
        _put(
            beside,
            name,
            addition,
            base,
            [(p, _own(p, leaf, base)) for p in by_module.get(module, ())],
        )
    for name, tokens in adapter.tokens.items():
        tensor = placement.names.get(name)
        if tensor is None:
            others = [other for key, other in adapter.tokens.items() if key != name]
            if not any(_same_rows(tokens, other) for other in others):
                beside.lacking.append(name)
            continue
        shape, (rows, replacement) = base.specs[tensor].shape, tokens
        if (
            len(shape) != 2
            or shape[1] != replacement.spec.shape[1]
            or max(rows, default=0) >= shape[0]
        ):
            beside.misfits.append(
                f"{tensor}: rows up to {max(rows, default=0)} are replaced by rows of "
                f"{replacement.spec.shape[1]} features, and the base's is {list(shape)}"
            )
        else:
            beside.tokens[tensor] = tokens
    return beside


def _same_rows(first: TokenRows, second: TokenRows) -> bool:
    """Whether two tables replace the same rows by the same ones: PEFT saves those of an embedding
    for the head too where it is one with it.
    """
    stored = [table.tensor.checkpoint.read(table.tensor.key) for table in (first, second)]
    return first.rows == second.rows and stored[0].equal(stored[1])


def _put(
    beside: Beside,
    name: str,
    addition: Addition,
    base: Checkpoint,
    targets: Sequence[tuple[Place, str]],
) -> None:
    (size,) = addition.replacement.spec.shape
    if sum(place.rows for place, _ in targets) != size:
        rows = [list(base.specs[tensor].shape) for _, tensor in targets if tensor in base.specs]
        if targets:
            beside.misfits.append(
                f"{name}: {size} numbers are added to {rows[0] if rows else 'none'}"
            )
        else:
            beside.lacking.append(name)
        return
    for place, tensor in targets:
        if tensor not in base.specs:
            beside.lacking.append(tensor)
        elif len(base.specs[tensor].shape) != 1:
            beside.misfits.append(
                f"{tensor}: {size} numbers are added to {list(base.specs[tensor].shape)}"
            )
        else:
            own = PlacedAddition(addition, place.row, place.at, place.rows)
            beside.added.setdefault(tensor, []).append(own)


def _own(place: Place, leaf: str, base: Checkpoint) -> str:
    """The tensor of a place's module that ends in `leaf`, by the name that it is read by."""
    name = place.tensor if leaf == "weight" else f"{place.tensor.removesuffix('weight')}{leaf}"
    return base.ties.get(name, name)


def _places_of_bare(adapter: Adapter, base: Checkpoint) -> list[Place]:
    """Where modules are of which nothing but a bias or a norm is changed."""
    bare = {}
    for name, addition in adapter.added.items():
        module = name.rpartition(".")[0]
        if module not in adapter.stored:
            size = addition.replacement.spec.shape[0]
            bare[module] = Module(ModuleSpec(module, "linear", (size, 1), 1, 1.0, "F32"), _unread)
    if not bare:
        return []
    return [
        place._replace(turned=False) for place in find(replace(adapter, stored=bare), base).places
    ]


def _unread() -> LowRank:
    raise AssertionError("a module that stands for its place has no factors")


def put_rows(tokens: TokenRows, base: Tensor, start: int, delta: Tensor) -> None:
    """Set the replaced rows' task vectors in the contiguous piece `delta` of an embedding."""
    flat, own = delta.view(-1), base.reshape(-1)
    (_, checkpoint, key), width = tokens.tensor, tokens.tensor.spec.shape[1]
    order = sorted(range(len(tokens.rows)), key=tokens.rows.__getitem__)
    rows = [tokens.rows[place] for place in order]
    for number in range(bisect.bisect_left(rows, start // width), len(rows)):
        row, place = rows[number], order[number]
        first, stop = max(start, row * width), min(start + flat.numel(), (row + 1) * width)
        if row * width >= start + flat.numel():
            break
        if first < stop:
            shift = (place - row) * width
            part = checkpoint.read_part(key, first + shift, stop + shift).to(flat)
            flat[first - start : stop - start] = part - own[first - start : stop - start]
