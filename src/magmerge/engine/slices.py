"""Models whose blocks a recipe puts together anew: each is seen under the names of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from magmerge.checkpoints.adapters.adapter_in_slices import AdapterInSlices
from magmerge.checkpoints.experts import FullExpert
from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.names.further_blocks import with_further_blocks
from magmerge.checkpoints.patchwork import Patch, Patchwork
from magmerge.core import dtypes, registry
from magmerge.core.assembly import BASE, Anatomy, Seat, Seats, seats_of
from magmerge.core.errors import StructureError
from magmerge.core.lazy import load
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.recipe import Recipe
from magmerge.core.stacks import block_of, lengths
from magmerge.core.traits import Method
from magmerge.engine.job import Models, Vote
from magmerge.engine.slice_config import Places, with_config
from magmerge.engine.slice_faults import (
    check_sliceable,
    is_base,
    model_faults,
    per_block_faults,
    structure_faults,
    unsliced_faults,
    voters,
)


def in_slices(recipe: Recipe, models: Models) -> Models:
    """The models with the blocks of the result in place of their own, and who votes on each tensor.

    A model has no vote on blocks in which it has no part. StructureError with all that is wrong
    with the slices.
    """
    check_sliceable(recipe, models)
    models = replace(models, experts=[_deeper(e, models.layout) for e in models.experts])
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    members: dict[str, Checkpoint | Expert] = {e.name: e for e in models.experts}
    main = next(iter(members))
    if models.base is not None:
        members, main = {BASE: models.base, **members}, BASE
    specs = {name: model.specs for name, model in members.items()}
    seats, faults = seats_of(recipe.slices, specs, specs[main])
    faults += model_faults(recipe, models, seats)
    if not faults:
        faults = per_block_faults(models, seats)
        config = read_model_config(models.base or models.layout)
        faults += structure_faults(seats, specs, main, config, lengths(specs[main]))
    if faults:
        raise StructureError(faults)
    assembly = _Assembly(models, members, main, seats, method)
    seen = assembly.models()
    seen = with_config(recipe, seen, seats, assembly.places(), lengths(specs[main]))
    notes = () if recipe.output.dtype is not None else _formats(seen.layout)
    faults = [*seen.faults, *unsliced_faults(method, seen)]
    return replace(seen, faults=faults, notes=(*seen.notes, *notes))


def _formats(layout: Checkpoint) -> tuple[str, ...]:
    """That blocks of one stack are stored in several formats, as those of several models are."""
    codes: dict[tuple[str, str], set[str]] = {}
    for name, spec in layout.specs.items():
        block = block_of(name)
        if block is not None and spec.dtype in dtypes.FLOATS:
            codes.setdefault((block.stack, block.inner), set()).add(spec.dtype)
    for (stack, inner), own in codes.items():
        if len(own) > 1:
            told = " and ".join(sorted(map(dtypes.torch_name, own)))
            return (
                f"blocks of {stack} are stored as {told} ({inner}), as their models have them; "
                "output: {dtype: bfloat16} in the recipe makes them one",
            )
    return ()


def _deeper(expert: Expert, layout: Checkpoint) -> Expert:
    """An expert with the blocks that it has more than the layout under the names of its stacks."""
    if expert.whole is None or expert.whole is layout:
        return expert
    whole = with_further_blocks(expert.whole, layout)
    return expert if whole is expert.whole else FullExpert(expert.name, whole)


class _Origin(NamedTuple):
    """A tensor of the result: the model that it is of, and its name there."""

    member: str
    name: str


@dataclass(frozen=True)
class _Assembly:
    """The models of a recipe, and the blocks of the result that they are seen with.

    `members` are base and experts by name, `main` is the one that says which tensors there are.
    """

    given: Models
    members: Mapping[str, Checkpoint | Expert]
    main: str
    seats: Seats
    method: Method | None

    @cached_property
    def anatomy(self) -> Anatomy:
        """Which tensors are in blocks."""
        return Anatomy(self.members[self.main].specs, list(self.seats))

    def models(self) -> Models:
        """All models under the names of the result."""
        given = self.given
        layout = self._layout()
        votes = {
            n: self._vote(seat, n) for n in layout.specs if (seat := self._seat(n)) is not None
        }
        base = self._base(layout)
        experts = [self._expert(expert, layout) for expert in given.experts]
        return replace(given, layout=layout, base=base, experts=experts, votes=votes)

    def places(self) -> Places:
        """The models of each block of the result, that first whose tensors it has."""

        def row(seat: Seat) -> list[tuple[Checkpoint, int]]:
            names = dict.fromkeys((self._source(seat), *seat.own))
            return [(self._whole(name), seat.own[name]) for name in names]

        return {stack: [row(seat) for seat in own] for stack, own in self.seats.items()}

    def _vote(self, seat: Seat, name: str) -> Vote:
        based = any(is_base(member, seat, self.method) for member in seat.own)
        moved = self.anatomy.block(name) is not None and len(set(seat.own.values())) > 1
        return Vote(seat.slice, voters(seat, self.given, self.method), based, moved)

    def _seat(self, name: str) -> Seat | None:
        """The place of a tensor of the result among the slices; None where none speaks of it. A
        head that is the embedding has the embedding's.
        """
        name = self.members[self.main].ties.get(name, name)
        block = self.anatomy.block(name)
        if block is not None:
            return self.seats[block.stack][block.number]
        owner = self.anatomy.owner(name)
        return None if owner is None else self.seats[owner[0]][0 if owner[1] else -1]

    def _source(self, seat: Seat | None) -> str:
        """The model whose tensors the result has there: the base, or the first that has a part."""
        if seat is None:
            return self.main
        based = [name for name in seat.own if is_base(name, seat, self.method)]
        return next(name for name in (*based, *self.members) if name in seat.own)

    def _whole(self, member: str) -> Checkpoint:
        """What holds a member's weights; of an adapter its base."""
        model: Any = self.members[member]
        whole: Checkpoint | None = None if model is self.given.base else model.whole
        assert whole is not None or self.given.base is not None
        return whole or self.given.base  # type: ignore[return-value]

    def _names(self, member: str) -> Iterator[tuple[str, str]]:
        """The names in the result of a member's tensors, each with its own; blocks in order."""
        inner: dict[tuple[str, int], list[tuple[str, str]]] = {}
        done: set[str] = set()
        names = list(self.members[member].specs)
        for name in names:
            block = self.anatomy.block(name)
            if block is not None:
                inner.setdefault(block[:2], []).append((block.inner, name))
        for name in names:
            block = self.anatomy.block(name)
            if block is None:
                seat = self._seat(name)
                if seat is None or member in seat.own:
                    yield name, name
            elif block.stack not in done:
                done.add(block.stack)
                for place, seat in enumerate(self.seats[block.stack]):
                    for own, old in inner.get((block.stack, seat.own.get(member, -1)), ()):
                        yield ".".join(p for p in (block.stack, str(place), own) if p), old

    def _layout(self) -> Patchwork:
        """The tensors of the result, each of the model that it is of, in the main one's order."""
        sources = dict.fromkeys(self._source(seat) for own in self.seats.values() for seat in own)
        every = {name: dict(self._names(name)) for name in dict.fromkeys((self.main, *sources))}
        origins: dict[str, _Origin] = {}
        for name in dict.fromkeys(name for names in every.values() for name in names):
            source = self._source(self._seat(name))
            if name in every[source]:
                origins[name] = _Origin(source, every[source][name])
        places: dict[str, int] = {}
        for place, name in enumerate(self.members[self.main].specs):
            block = self.anatomy.block(name)
            places.setdefault(name if block is None else block.stack, place)

        def order(name: str) -> tuple[int, int]:
            block = self.anatomy.block(name)
            key, number = (name, 0) if block is None else (block.stack, block.number)
            return places.get(key, len(places)), number

        ordered = {name: origins[name] for name in sorted(origins, key=order)}
        return self._patched(self._whole(self.main), ordered)

    def _base(self, layout: Patchwork) -> Patchwork | None:
        """The base of each tensor: that of the recipe, or of its slice."""
        origins: dict[str, _Origin] = {}
        for member in self.members:
            for name, old in self._names(member):
                seat = self._seat(name)
                if member == BASE if seat is None else is_base(member, seat, self.method):
                    origins[name] = _Origin(member, old)
        if not origins and self.given.base is None:
            return None
        first = self.given.base or self._whole(next(iter(origins.values())).member)

        def part(seat: Seat) -> bool:
            return any(is_base(name, seat, self.method) for name in seat.own)

        return self._patched(first, origins, layout, part)

    def _expert(self, expert: Expert, layout: Patchwork) -> Expert:
        """An expert with its blocks at their places, and no vote elsewhere."""
        names = dict(self._names(expert.name))
        seats = {name: self._seat(name) for name in names}
        if expert.whole is not None:
            origins = {name: _Origin(expert.name, old) for name, old in names.items()}
            return FullExpert(
                expert.name,
                self._patched(expert.whole, origins, layout, lambda seat: expert.name in seat.own),
            )
        assert self.given.base is not None
        shared = frozenset(
            name
            for name, seat in seats.items()
            if seat is None
            or (self.anatomy.block(name) is None and BASE in seat.own)
            or seat.own.get(BASE) == seat.own[expert.name]
        )
        return AdapterInSlices(expert, self.given.base, names, layout.specs, shared)

    def _patched(
        self,
        first: Checkpoint,
        origins: Mapping[str, _Origin],
        layout: Checkpoint | None = None,
        part: Callable[[Seat], bool] | None = None,
    ) -> Patchwork:
        """A view of tensors of several models. Those of the layout where a model has no `part` in
        the slice are nobody's; the layout itself has every row of a token that any model has.
        """
        patches: dict[str, Patch] = {}
        ties: dict[str, Any] = {}
        if layout is not None:
            bare = [n for n in layout.specs if n not in origins and self._lacks(n, part)]
            patches |= {name: Patch(None, layout.specs[name]) for name in bare}
            ties |= {name: layout.ties[name] for name in bare if name in layout.ties}
        for name, (member, old) in origins.items():
            whole = self._whole(member)
            holder = whole if layout is not None else self._with_lent_rows(whole, old)
            patches[name] = Patch(holder, whole.specs[old])
            twin = self._twin(name, whole.ties.get(old))
            if twin in origins and origins[twin].member == member:
                ties[name] = twin
        return Patchwork(first, patches, ties, getattr(self.given.layout, "order", {}))

    def _lacks(self, name: str, part: Callable[[Seat], bool] | None) -> bool:
        """Whether slices give a model no part in a tensor."""
        seat = self._seat(name)
        return seat is not None and part is not None and not part(seat)

    def _with_lent_rows(self, whole: Checkpoint, name: str) -> Checkpoint:
        """A model with the rows of tokens that it has not from the first model that has them,
        though it has no part in the slice: no token of the result is without a row.
        """
        holes = getattr(whole, "absent", {}).get(name, ())
        if not holes:
            return whole
        others = dict.fromkeys(self._whole(member) for member in self.members)
        lenders = [other for other in others if other is not whole and name in other.specs]
        view: Checkpoint = load("magmerge.checkpoints.tokens.rows:with_lent_rows")(
            whole, name, lenders
        )
        return view

    def _twin(self, name: str, old: str | None) -> str:
        """The name here of what a tensor shares its memory with: outside blocks, or in its own."""
        block = None if old is None else self.anatomy.block(old)
        here = self.anatomy.block(name)
        if block is None or here is None:
            return old or "" if block is None else ""
        return ".".join(p for p in (here.stack, str(here.number), block.inner) if p)
