"""The draw from a source, the column that holds its texts or images, and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.errors import UnknownNameError, suggestion
from magmerge.samples import splits
from magmerge.samples.arrays import ReadyFile
from magmerge.samples.draw import drawing_order
from magmerge.samples.rows import DataError, Images, Rows, Texts
from magmerge.samples.table import Row, Table

LEAST_READ = 64
"""Rows that are looked at in one go, at least, where some may have to be passed over."""


class Choice(NamedTuple):
    """What is wanted of a source; see `read_samples`."""

    name: str
    samples: int | None
    seed: int
    field: str | None
    label_field: str | None
    split: str | None
    allow_test: bool
    pair_field: str | None = None


def select_ready(file: ReadyFile, choice: Choice) -> Rows:
    """The drawn rows of a file of ready inputs."""
    total = len(file)
    wanted = total if choice.samples is None else choice.samples
    if total < max(wanted, 1):
        raise _too_few(file.source, wanted, total)
    rows: Sequence[int] = range(total)
    if choice.samples is not None:
        rows = drawing_order(choice.seed, choice.name, total)[:wanted].tolist()
    labels = None if choice.label_field is None else file.labels(rows, choice.label_field)
    return Rows(choice.name, file.source, file.read(rows, choice.label_field), labels)


def select(table: Table, choice: Choice) -> Rows:
    """The drawn rows of a table whose text is not empty, of the split that is wanted."""
    field = choose_field(table, choice)
    columns = [field, *(name for name in (choice.label_field, choice.pair_field) if name)]
    columns += [splits.COLUMN] if splits.COLUMN in table.columns else []
    values, seconds, labels, empty = [], [], [], 0
    for row in _candidates(table, choice, columns):
        if splits.COLUMN in table.columns and not _of_split(row, choice):
            continue
        value = _value(table, row, field)
        second = _second(table, row, choice.pair_field)
        if isinstance(value, str) and not f"{value}{second}".strip():
            empty += 1
            continue
        values.append(value)
        seconds.append(second)
        if choice.label_field is not None:
            labels.append(_label(table, row, choice.label_field))
        if len(values) == choice.samples:
            break
    if len(values) < (choice.samples or 1):
        spared = splits.COLUMN in table.columns and not (choice.split or choice.allow_test)
        wanted = choice.samples or 1
        raise _too_few(table.source, wanted, len(values), choice.split, spared=spared)
    notes = (f"{table.source}: {empty} rows without text were passed over",) if empty else ()
    content: Texts | Images = Images(tuple(values))
    if isinstance(values[0], str):
        content = Texts(tuple(values), tuple(seconds) if choice.pair_field is not None else None)
    found = tuple(labels) if choice.label_field is not None else None
    classes = table.classes.get(choice.label_field or "")
    return Rows(choice.name, table.source, content, found, classes, notes)


def choose_field(table: Table, choice: Choice) -> str:
    """The column asked for, else `text`, else the only column of texts, else of images."""
    if choice.field is not None:
        return choice.field
    reserved = (choice.label_field, choice.pair_field, splits.COLUMN)
    texts = [
        name for name, kind in table.columns.items() if kind == "text" and name not in reserved
    ]
    if "text" in texts:
        return "text"
    images = [name for name, kind in table.columns.items() if kind == "image"]
    for found in (texts, images):
        if len(found) == 1:
            return found[0]
    if not len(table):
        raise _too_few(table.source, choice.samples or 1, 0)
    listing = ", ".join(table.columns)
    likely = (texts or images or list(table.columns) or ["text"])[0]
    raise DataError(
        f"which column holds the texts? It has {listing}",
        source=table.source,
        remedy=f"name it with --text-field (text_field=), {likely} for example",
    )


def _candidates(table: Table, choice: Choice, columns: Sequence[str]) -> Iterator[Row]:
    """All rows in the order of the draw, read few at a time."""
    if choice.samples is None:
        yield from table.read(range(len(table)), columns)
        return
    order = drawing_order(choice.seed, choice.name, len(table)).tolist()
    start, step = 0, choice.samples
    while start < len(order):
        yield from table.read(order[start : start + step], columns)
        start += step
        step = max(2 * step, LEAST_READ)


def _of_split(row: Row, choice: Choice) -> bool:
    """Whether a row says that it is of the split that is wanted; never of test unasked."""
    own = row.values.get(splits.COLUMN)
    if choice.split is not None:
        return own == choice.split
    return choice.allow_test or not isinstance(own, str) or not splits.names_test(own)


def _value(table: Table, row: Row, field: str) -> Any:
    """A text that can be encoded, or an image."""
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
        if isinstance(value, Path) or table.columns.get(field) == "image":
            return value
        raise DataError(
            f"{row.place}: column {field!r} holds no text but a {type(value).__name__}",
            source=table.source,
            remedy="name the column of the texts with --text-field (text_field=)",
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


def _second(table: Table, row: Row, field: str | None) -> str:
    """The second text of a pair, empty where none is wanted; either of the two may be empty."""
    if field is None:
        return ""
    second = _value(table, row, field)
    if not isinstance(second, str):
        raise DataError(
            f"{row.place}: column {field!r} holds no text",
            source=table.source,
            remedy="name the column of the second texts with pair_field",
        )
    return second


def _label(table: Table, row: Row, field: str) -> Any:
    # A folder of images has no other column that could hold the classes.
    values = row.values
    name = "label" if isinstance(values.get("image"), Path) else field
    if values.get(name) is None:
        raise DataError(
            f"{row.place} has no label in column {name!r}",
            source=table.source,
            remedy=suggestion(name, values),
        )
    return values[name]


def _too_few(
    source: str, wanted: int, found: int, split: str | None = None, *, spared: bool = False
) -> DataError:
    """`spared` says that rows of the test split were passed over."""
    of = f" of the split {split!r}" if split is not None else ""
    rows = f"{found} row{'' if found == 1 else 's'}{' outside the test split' if spared else ''}"
    return DataError(
        f"{wanted} row{'' if wanted == 1 else 's'}{of} wanted, and there "
        f"{'is' if found == 1 else 'are'} {rows}",
        source=source,
        remedy=f"draw {found} with --samples (samples=)" if found else "give data that has rows",
    )
