"""The rows of each token tensor in each model, by the vocabulary that the result has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from magmerge.checkpoints.tokens.alignment import Alignment, groups
from magmerge.checkpoints.tokens.choice import MERGE_FIRST, Choice
from magmerge.checkpoints.tokens.experts import holds_first_rows
from magmerge.checkpoints.tokens.members import Member, all_rows_of, row_map
from magmerge.checkpoints.tokens.rows import ABSENT, RowMap, Rows
from magmerge.core.errors import Fault, StructureError
from magmerge.core.filters import matches
from magmerge.core.models import Expert
from magmerge.core.recipe import Recipe

Maps = Mapping[str, Mapping[int, RowMap]]
"""For each token tensor the rows of each model by its place; under LAYOUT those of the result."""
LAYOUT = -1


def is_plain(members: Sequence[Member], alignment: Alignment) -> bool:
    """Whether all models have the same rows in the same order."""
    first, every = members[0], np.arange(alignment.count)
    return alignment.count == first.table.count and all(
        member.counts.get(name, count) == count and bool((rows == every)[: first.table.count].all())
        for member, rows in zip(members, alignment.rows, strict=True)
        for name, count in first.counts.items()
    )


def row_maps(recipe: Recipe, members: Sequence[Member], choice: Choice) -> Maps:
    """The rows of each tensor in each model. A tensor that is ignored is the owner's as it is.

    StructureError where tokens would be added to tensors of different numbers of rows.
    """
    owner, alignment = members[choice.owner or 0], choice.alignment
    maps: dict[str, dict[int, RowMap]] = {}
    for name in members[0].counts:
        count = owner.counts.get(name, owner.table.count)
        if count == owner.table.count:
            count = alignment.count
        elif alignment.count != owner.table.count:
            raise StructureError([_uneven(name, count, owner)])
        rows = [each[:count] for each in alignment.rows]
        if matches(name, recipe.ignore):
            first = [choice.owner or 0, *range(len(members))]
            lenders = [
                (reader, np.where(rows[place] < members[place].counts[name], rows[place], ABSENT))
                for place in first
                if (reader := members[place].reader) is not None and name in members[place].counts
            ]
            maps[name] = {LAYOUT: all_rows_of(lenders, count)}
            continue
        shares = [share for share in choice.shares if share.place < count]
        # Without a base the layout is the first expert, which has no vote where a row is forced.
        maps[name] = {
            place: row_map(each, member.counts[name], shares, lends=not member.votes)
            for place, (member, each) in enumerate(zip(members, rows, strict=True))
            if name in member.counts
        }
        maps[name][LAYOUT] = row_map(rows[0], members[0].counts[name], shares, lends=True)
    return maps


def _uneven(name: str, count: int, owner: Member) -> Fault:
    text = f"{name} of {owner.name} has {count} rows, and other tensors {owner.table.count}"
    remedy = "name the model whose tokens the result should have: --tokenizer base (tokenizer=)"
    return Fault(f"{text}: no tokens can be added", remedy)


def check_adapters(members: Sequence[Member], maps: Maps) -> None:
    """StructureError for adapters whose rows would have to be put in another order."""
    faults = [
        Fault(
            f"{name}: the rows of {member.model.source} are in another order than the result's",
            MERGE_FIRST,
        )
        for name, rows in maps.items()
        for place, member in enumerate(members)
        if member.reader is None and place in rows
        if not holds_first_rows(cast("Expert", member.model), name, rows[place])
    ]
    if faults:
        raise StructureError(faults)


def presence(members: Sequence[Member], maps: Maps) -> dict[str, list[NDArray[np.bool_]]]:
    """For each tensor that is merged which of its rows each model has, the base first."""
    first = int(members[0].is_merged)
    return {
        name: [~rows[place].lacking for place in range(first, len(members)) if place in rows]
        for name, rows in maps.items()
        if len(rows) > 1
    }


def row_orders(members: Sequence[Member], maps: Maps) -> dict[str, Rows]:
    """The order of each tensor's rows in which those of the same voters are together, if it is
    another than their own: few steps are made of it then, however tokens are strewn.
    """
    orders = {name: groups(p) for name, p in presence(members, maps).items()}
    return {n: order for n, order in orders.items() if (order != np.arange(len(order))).any()}
