"""The models of a merge as their rows of tokens: how many they have, and which texts are theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from magmerge.checkpoints.tokens.alignment import TokenTable
from magmerge.checkpoints.tokens.rows import ABSENT, Loan, RowMap, Rows, row_axis
from magmerge.checkpoints.tokens.vocabulary import Vocabulary, read_vocabulary
from magmerge.core.models import Checkpoint, Expert

MERGED = "merged"
"""What a merged model is called."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model: what a recipe calls it, its rows in each token tensor that it has, its tokenizer and
    where that is. `reader` is None of an adapter. `votes`: it is an expert, no base.
    """

    name: str
    model: Checkpoint | Expert
    counts: Mapping[str, int]
    vocabulary: Vocabulary | None
    folder: Path | None
    reader: Checkpoint | None
    votes: bool = True

    @property
    def is_merged(self) -> bool:
        """Whether it is the merged model that is calibrated, whatever an expert is called."""
        return self.name == MERGED and not self.votes

    @property
    def table(self) -> TokenTable:
        """Its rows of tokens."""
        ids = None if self.vocabulary is None else self.vocabulary.ids
        return TokenTable(self.name, max(self.counts.values(), default=0), ids)


def member_of(
    name: str, checkpoint: Checkpoint, tensors: Mapping[str, int], *, votes: bool = True
) -> Member:
    """A whole model."""
    vocabulary = read_vocabulary(checkpoint.folder)
    counts = _counts(checkpoint, tensors)
    return Member(name, checkpoint, counts, vocabulary, checkpoint.folder, checkpoint, votes)


def expert_member(expert: Expert, tensors: Mapping[str, int], base: Member | None) -> Member:
    """An expert. An adapter that changes no row of a token has those of its base; so has one that
    has as many, where no tokenizer lies beside it.
    """
    if expert.whole is not None or base is None:
        assert expert.whole is not None
        return member_of(expert.name, expert.whole, tensors)
    counts = _counts(expert, tensors)
    folder = expert.files[0].parent if expert.files else None
    own = None if counts == base.counts else read_vocabulary(folder)
    changed = any(name not in expert.untouched for name in counts)
    if changed and own is None and counts == base.counts:
        own = read_vocabulary(folder) or base.vocabulary
    if not changed:
        own, counts = base.vocabulary, dict(base.counts)
    return Member(expert.name, expert, counts, own, folder, None)


class Share(NamedTuple):
    """A row that a model gets for the token at `place` of the result; with `force` it is the row of
    all. Without a reader it is zeros.
    """

    place: int
    reader: Checkpoint | None
    row: int
    force: bool


def row_map(own: Rows, count: int, shares: Sequence[Share], *, lends: bool) -> RowMap:
    """A model's rows of one tensor, that has `count` of its own, with what single tokens get. A row
    that is forced is only in the model that `lends` it to the result: others have no vote on it.
    """
    own, loans = np.where(own < count, own, ABSENT), []
    for share in shares:
        if share.force:
            own[share.place] = ABSENT
        if own[share.place] == ABSENT and (lends or not share.force):
            place, row = np.array([share.place]), np.array([share.row])
            loans.append(Loan(place, share.reader, row))
    return RowMap(own, tuple(loans))


def all_rows_of(lenders: Sequence[tuple[Checkpoint, Rows]], count: int) -> RowMap:
    """The `count` rows of a tensor as the first of the `lenders` has them that has them."""
    left, loans = np.ones(count, dtype=bool), []
    for reader, rows in lenders:
        places = np.flatnonzero(left & (rows[:count] != ABSENT))
        loans.append(Loan(places, reader, rows[places]))
        left[places] = False
    return RowMap(np.full(count, ABSENT), tuple(loan for loan in loans if len(loan.places)))


def is_identity(rows: RowMap, count: int) -> bool:
    """Whether these are the `count` rows of a tensor as they are."""
    own = rows.own
    return len(own) == count and not rows.loans and bool((own == np.arange(count)).all())


def permuted(rows: RowMap, order: Rows) -> RowMap:
    """The same with its rows in another order."""
    rank = np.argsort(order)
    loans = tuple(loan._replace(places=rank[loan.places]) for loan in rows.loans)
    return RowMap(rows.own[order], loans)


def _counts(model: Checkpoint | Expert, tensors: Mapping[str, int]) -> dict[str, int]:
    specs = {name: model.specs[name] for name in tensors if name in model.specs}
    return {name: spec.shape[row_axis(spec)] for name, spec in specs.items() if spec.shape}
