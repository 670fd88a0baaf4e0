"""The draw from a source: which rows by seed and name, and their texts or images and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magmerge.core.errors import UnknownNameError, shortened, suggestion
from magmerge.data import splits
from magmerge.data.chat import JOINED, MESSAGES, PAIR, chat_fields, chat_of
from magmerge.data.ready_files import ReadyFile
from magmerge.data.rows import (
    Chat,
    Chats,
    DataError,
    Images,
    Rows,
    SampleDraw,
    Texts,
)
from magmerge.data.sample_table import SampleRow, Table
from magmerge.linalg.draws import derive_seed

LEAST_READ = 64
"""Rows that are looked at in one go, at least, where some may have to be passed over."""


def drawing_order(seed: int, name: str, count: int) -> npt.NDArray[np.int64]:
    """All `count` rows in the order in which they are drawn; the first N of it are a draw of N.

    SampleRow i's key is word i of the SFC64 stream seeded with (seed, name); the rows are sorted by
    their keys. numpy keeps the raw words of its bit generators the same from version to version.
    """
    keys = np.random.SFC64(derive_seed(seed, "samples", name)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def draw_ready(file: ReadyFile, how: SampleDraw) -> Rows:
    """The drawn rows of a file of ready inputs."""
    total = len(file)
    if total < how.passed + how.least:
        raise _too_few(file.source, how.least, total)
    rows: Sequence[int] = range(total)
    if how.samples is not None:
        drawn = drawing_order(how.seed, how.name, total)
        rows = drawn[how.passed : how.passed + how.samples].tolist()
    labels = None if how.label_field is None else file.labels(rows, how.label_field)
    return Rows(how.name, file.source, file.read(rows, how.label_field), labels)


def draw(table: Table, how: SampleDraw) -> Rows:
    """The drawn rows of a table whose text is not empty, of the split that is asked for."""
    fields, by_split = choose_fields(table, how), splits.COLUMN in table.columns
    columns = [*fields, *(name for name in (how.label_field, how.pair_field) if name)]
    columns += [splits.COLUMN] if by_split else []
    value_of = _reader(table, how, fields)
    values, seconds, labels, empty, passed = [], [], [], 0, 0
    for row in _candidates(table, how, columns):
        if by_split and not _of_split(row, how):
            continue
        value = value_of(row)
        second = "" if how.pair_field is None else _value(table, row, how.pair_field, second=True)
        if isinstance(value, str) and not f"{value}{second}".strip():
            empty += 1
            continue
        if passed < how.passed:
            passed += 1
            continue
        values.append(value)
        seconds.append(second)
        if how.label_field is not None:
            labels.append(_label(table, row, how.label_field))
        if len(values) == how.samples:
            break
    if len(values) < how.least:
        spared = by_split and not (how.split or how.allow_test)
        raise _too_few(table.source, how.least, len(values), how.split, spared=spared)
    notes = (f"{table.source}: {empty} rows without text were passed over",) if empty else ()
    content: Texts | Chats | Images = Images(tuple(values))
    if isinstance(values[0], Chat):
        content = Chats(tuple(values))
    if isinstance(values[0], str):
        content = Texts(tuple(values), None if how.pair_field is None else tuple(seconds))
    row_labels = None if how.label_field is None else tuple(labels)
    classes = table.classes.get(how.label_field or "")
    return Rows(how.name, table.source, content, row_labels, classes, notes)


def choose_fields(table: Table, how: SampleDraw) -> tuple[str, ...]:
    """The column asked for, or several joined by commas; else `text`, else a conversation's, else
    the only column of texts, else of images.
    """
    if how.field is not None:
        named = tuple(part.strip() for part in how.field.split(","))
        return (how.field,) if how.field in table.columns or "" in named else named
    other = (how.label_field, how.pair_field, splits.COLUMN)
    texts = [name for name, kind in table.columns.items() if kind == "text" and name not in other]
    if "text" in texts:
        return ("text",)
    if (conversation := chat_fields(table.columns)) is not None:
        return conversation
    images = [name for name, kind in table.columns.items() if kind == "image"]
    for names in (texts, images):
        if len(names) == 1:
            return (names[0],)
    if not len(table):
        raise _too_few(table.source, how.samples or 1, 0)
    likely = (texts or images or list(table.columns) or ["text"])[0]
    raise DataError(
        f"which column holds the texts? It has {shortened(list(table.columns))}",
        source=table.source,
        remedy=f"name it with --text-field (text_field=), {likely} for example",
    )


def _candidates(table: Table, how: SampleDraw, columns: Sequence[str]) -> Iterator[SampleRow]:
    """All rows in the order of the draw, read few at a time."""
    if how.samples is None:
        yield from table.read(range(len(table)), columns)
        return
    order = drawing_order(how.seed, how.name, len(table)).tolist()
    start, step = 0, how.passed + how.samples
    while start < len(order):
        yield from table.read(order[start : start + step], columns)
        start += step
        step = max(2 * step, LEAST_READ)


def _of_split(row: SampleRow, how: SampleDraw) -> bool:
    """Whether a row says that it is of the split to read; never of test unless that is allowed."""
    own = row.values.get(splits.COLUMN)
    if how.split is not None:
        return own == how.split
    return how.allow_test or not isinstance(own, str) or not splits.names_test(own)


def _reader(table: Table, how: SampleDraw, fields: Sequence[str]) -> Callable[[SampleRow], Any]:
    """From a row to the value of its only column, several as one text, or a conversation.

    A conversation is read where its columns were found, or `messages` was asked for.
    """
    talks = fields == (MESSAGES,) and table.columns.get(MESSAGES) != "text"
    if talks or (how.field is None and fields == PAIR):
        return lambda row: chat_of(row, fields, table.source) or ""
    if len(fields) == 1:
        return lambda row: _value(table, row, fields[0])

    def joined(row: SampleRow) -> str:
        parts = [_value(table, row, field, second=True) for field in fields]
        return JOINED.join(part for part in parts if part.strip())

    return joined


def _value(table: Table, row: SampleRow, field: str, *, second: bool = False) -> Any:
    """A text that can be encoded, or an image; of a pair's `second` column a text only."""
    if field not in row.values:
        raise UnknownNameError(
            f"{row.place} has no column {field!r}",
            source=table.source,
            remedy=suggestion(field, row.values),
        )
    value = row.values[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        if not second and (isinstance(value, Path) or table.columns.get(field) == "image"):
            return value
        which, option = ("texts", "--text-field (text_field=)")
        if second:
            which, option = ("second texts", "pair_field")
        raise DataError(
            f"{row.place}: column {field!r} holds no text but a {type(value).__name__}",
            source=table.source,
            remedy=f"name the column of the {which} with {option}",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.place}: column {field!r} holds half a surrogate pair",
            source=table.source,
            remedy="save the file as UTF-8",
        ) from error
    return value


def _label(table: Table, row: SampleRow, field: str) -> Any:
    # A folder of images has no other column that could hold the classes.
    name = "label" if isinstance(row.values.get("image"), Path) else field
    label = row.values.get(name)
    if label is None:
        raise DataError(
            f"{row.place} has no label in column {name!r}",
            source=table.source,
            remedy=suggestion(name, row.values),
        )
    return label


def _too_few(
    source: str, count: int, there: int, split: str | None = None, *, spared: bool = False
) -> DataError:
    """`spared` says that rows of the test split were passed over."""
    of = f" of the split {split!r}" if split is not None else ""
    rows = f"{there} row{'' if there == 1 else 's'}{' outside the test split' if spared else ''}"
    return DataError(
        f"{count} row{'' if count == 1 else 's'}{of} wanted, and there "
        f"{'is' if there == 1 else 'are'} {rows}",
        source=source,
        remedy=f"draw {there} with --samples (samples=)" if there else "give data that has rows",
    )
