"""Vocabularies beside each other: the tokens of the result, and each model's row of every token."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from magmerge.checkpoints.tokens.rows import ABSENT, Rows


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A model's rows of tokens: what it is called, how many they are, and the ids of its texts;
    None where no file tells them. Rows without a text are told by their place.
    """

    name: str
    count: int
    ids: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Alignment:
    """The result's vocabulary: a text for each row, None where it has none, and for each model its
    own row of it, or ABSENT. `lost` are the texts of each model that the result has not, and `cut`
    how many rows of it that no file names; `assumed` the models whose rows are taken by their place
    for those of another, by name.
    """

    texts: Sequence[str | None]
    rows: Sequence[Rows]
    lost: Sequence[Sequence[str]]
    cut: Sequence[int]
    assumed: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many rows the result has."""
        return len(self.texts)


class AmbiguousRowsError(Exception):
    """A model without a tokenizer beside others whose tokenizers are not the same."""

    def __init__(self, model: str, first: str, second: str) -> None:
        self.model, self.first, self.second = model, first, second
        super().__init__(model)


def align(
    tables: Sequence[TokenTable], owner: int | None = None, more: Collection[str] = ()
) -> Alignment:
    """The vocabulary of the model at `owner`, or the union of all: that of the first, then what
    others have beside it. `more` are texts that the result has in any case.

    AmbiguousRowsError where a model says no texts, and others say different ones.
    """
    bare = [table.ids is None for table in tables]
    tables, assumed = _with_texts(tables)
    known: dict[str, int] = {}
    numbered = [_numbered(table.ids or {}, known) for table in tables]
    for text in more:
        known.setdefault(text, len(known))
    names = [_by_place(*each, table.count) for each, table in zip(numbered, tables, strict=True)]
    first = numbered[owner or 0]
    # Also texts that the model has no rows for: another may have them.
    result = _by_place(*first, max(tables[owner or 0].count, int(first[0].max(initial=-1)) + 1))
    for place, table in enumerate(tables) if owner is None else ():
        result = _with_others(result, names[place])
        if bare[place] and table.count > len(result):
            # What has no text at all may still be tokens.
            result = _put(result, len(result), np.full(table.count - len(result), -1))
    beside = np.array([known[text] for text in more], dtype=np.int64)
    result = _put(result, _end(result), beside[~np.isin(beside, result)])
    texts_of = [*known, None]
    texts = [texts_of[number] for number in result.tolist()]
    rows = [
        _own_rows(result, each, name, len(known))
        for each, name in zip(numbered, names, strict=True)
    ]
    lost = [
        [texts_of[number] for number in name[(name >= 0) & ~np.isin(name, result)].tolist()]
        for name in names
    ]
    return Alignment(
        texts,
        rows,
        lost,
        [max(0, t.count - len(result)) if b else 0 for t, b in zip(tables, bare, strict=True)],
        assumed,
    )


def padded(alignment: Alignment, multiple: int) -> Alignment:
    """The same with rows that nobody has, up to a multiple."""
    short = -alignment.count % multiple
    rows = [np.concatenate([each, np.full(short, ABSENT)]) for each in alignment.rows]
    return replace(alignment, texts=[*alignment.texts, *[None] * short], rows=rows)


def patterns(presence: Sequence[NDArray[np.bool_]]) -> tuple[Rows, Rows]:
    """Which models have each row, as a number that rows of the same models share: for each pattern
    the first row that has it, and for each row its pattern.
    """
    group = np.zeros(len(presence[0]), dtype=np.int64)
    for has in presence:
        _, first, group = np.unique(2 * group + has, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


def groups(presence: Sequence[NDArray[np.bool_]]) -> Rows:
    """An order of the rows in which those that the same models have are next to each other: for
    each place the row. It is the rows' own order where that is so already.
    """
    first, group = patterns(presence)
    return np.argsort(first[group], kind="stable")


def _with_texts(tables: Sequence[TokenTable]) -> tuple[list[TokenTable], dict[str, str]]:
    """The tables, those without texts by those of the first that has some."""
    named = [table for table in tables if table.ids is not None]
    if not named or len(named) == len(tables):
        return list(tables), {}
    sure = max(table.count for table in tables if table.ids is None)
    head = _head(named[0], sure)
    for other in named[1:]:
        theirs = _head(other, sure)
        if any(head[number] != theirs[number] for number in head.keys() & theirs.keys()):
            bare = next(table.name for table in tables if table.ids is None)
            raise AmbiguousRowsError(bare, named[0].name, other.name)
    known = {text: number for number, text in head.items()}
    assumed = {t.name: named[0].name for t in tables if t.ids is None and t.count != named[0].count}
    return [replace(t, ids=known) if t.ids is None else t for t in tables], assumed


def _head(table: TokenTable, count: int) -> dict[int, str]:
    """The texts of the ids below `count`."""
    return {number: text for text, number in (table.ids or {}).items() if number < count}


def _numbered(ids: Mapping[str, int], known: dict[str, int]) -> tuple[Rows, Rows]:
    """The ids of a model's texts, and the numbers of these texts; new ones are numbered on."""
    numbers = (known.setdefault(text, len(known)) for text in ids)
    count = len(ids)
    return np.fromiter(ids.values(), np.int64, count), np.fromiter(numbers, np.int64, count)


def _by_place(places: Rows, numbers: Rows, count: int) -> Rows:
    """For each of `count` rows the number of its text, -1 without one."""
    names = np.full(count, -1, dtype=np.int64)
    inside = places < count
    names[places[inside]] = numbers[inside]
    return names


def _own_rows(result: Rows, numbered: tuple[Rows, Rows], names: Rows, known: int) -> Rows:
    """The model's row of each row of the result: that of the same text, or place without one."""
    places, numbers = numbered
    inside = places < len(names)
    row_of = np.full(known + 1, ABSENT, dtype=np.int64)
    row_of[numbers[inside]] = places[inside]
    nameless = np.zeros(len(result), dtype=bool)
    nameless[: len(names)] = names[: len(result)] == -1
    bare = np.where(nameless, np.arange(len(result)), ABSENT)
    own: Rows = np.where(result >= 0, row_of[result], bare)
    return own


def _with_others(result: Rows, names: Rows) -> Rows:
    """The result's rows and, behind the last text there, those of this model that it has not yet.

    Tokenizers number what is added to them without holes.
    """
    return _put(result, _end(result), names[(names >= 0) & ~np.isin(names, result)])


def _end(result: Rows) -> int:
    """The place behind the last row that has a text."""
    named = np.flatnonzero(result >= 0)
    return int(named[-1]) + 1 if len(named) else 0


def _put(result: Rows, place: int, numbers: Rows) -> Rows:
    """The rows with these texts from `place` on, where none has one."""
    short = place + len(numbers) - len(result)
    result = np.concatenate([result, np.full(max(0, short), -1)])
    result[place : place + len(numbers)] = numbers
    return result
