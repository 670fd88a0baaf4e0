"""Data sets of the `datasets` library: saved in a folder, loaded by name, or given as objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.samples import splits
from magmerge.samples.extras import needed
from magmerge.samples.rows import DataError
from magmerge.samples.table import Column, Row

MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What `save_to_disk` leaves in a folder."""


class LibraryTable:
    """One split of a data set."""

    def __init__(self, data: Any, source: str) -> None:
        self.source, self._data = source, data
        kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
        self.columns: Mapping[str, Column] = {
            name: "image" if kinds[name] == "Image" else _kind(feature)
            for name, feature in data.features.items()
        }
        self.classes: Mapping[str, tuple[str, ...]] = {
            name: tuple(data.features[name].names)
            for name, kind in kinds.items()
            if kind == "ClassLabel"
        }

    def __len__(self) -> int:
        return len(self._data)

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[Row]:
        # Images are decoded when they are asked for, and other columns for nothing.
        wanted = [name for name in columns if name in self.columns]
        images = [name for name in wanted if self.columns[name] == "image"]
        data = self._data.select_columns([name for name in wanted if name not in images])
        pictured = {name: _undecoded(self._data.select_columns([name]), name) for name in images}
        for row in rows:
            try:
                values = dict(data[int(row)]) if data.column_names else {}
            except Exception as error:
                raise DataError(
                    f"row {row} cannot be read: {error}", source=self.source, remedy="save it anew"
                ) from error
            for name in images:
                values[name] = StoredPicture(pictured[name], int(row), name, self.source)
            yield Row(f"row {row}", values)


class StoredPicture:
    """An image in a data set, which is read and decoded when it is asked for."""

    __slots__ = ("_column", "_data", "_row", "_source")

    def __init__(self, data: Any, row: int, column: str, source: str) -> None:
        self._data, self._row, self._column, self._source = data, row, column, source

    def content(self) -> BytesIO | Path:
        """The image's file as it is stored; ValueError where the row has none here."""
        found = self._data[self._row][self._column]
        if found is None:
            raise ValueError("the row has no image")
        if found["bytes"] is not None:
            return BytesIO(found["bytes"])
        path = Path(str(found["path"]))
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    def __str__(self) -> str:
        return f"{self._source}, row {self._row}"


class Named(NamedTuple):
    """What NAME, NAME:CONFIG, NAME:CONFIG:SPLIT and NAME::SPLIT say."""

    name: str
    config: str | None
    split: str | None


def named(text: str) -> Named:
    """A data set's name with its configuration and its split, as far as the text says them.

    The split may be cut as `datasets` does it: sms_spam:plain_text:train[:80%].
    """
    name, _, rest = text.partition(":")
    config, _, split = rest.partition(":")
    return Named(name, config or None, split or None)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of datasets made this folder."""
    return any((folder / mark).is_file() for mark in MARKS)


def is_saved_with_splits(folder: Path) -> bool:
    """Whether `save_to_disk` wrote several splits there."""
    return (folder / MARKS[0]).is_file()


def is_data_set(source: object) -> bool:
    """Whether an object is a Dataset or DatasetDict."""
    return type(source).__module__.partition(".")[0] == "datasets" and (
        hasattr(source, "features") or isinstance(source, Mapping)
    )


def open_saved(folder: Path, split: str | None, *, allow_test: bool) -> LibraryTable:
    """The split of a data set that `save_to_disk` wrote."""
    library = needed("datasets", "a folder saved by datasets")
    try:
        found = library.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"datasets cannot load it: {_first_line(error)}",
            source=folder,
            remedy="save it anew with save_to_disk, or give its rows as JSON Lines",
        ) from error
    return open_object(found, str(folder), split, allow_test=allow_test)


def open_object(data: Any, source: str, split: str | None, *, allow_test: bool) -> LibraryTable:
    """The split of a Dataset, which may know which it is, or of a DatasetDict."""
    if isinstance(data, Mapping):
        data = data[splits.chosen(split, data, source, allow_test=allow_test)]
        return LibraryTable(data, source)
    if not hasattr(data, "select_columns") or not hasattr(data, "__len__"):
        raise DataError("it is streamed", source=source, remedy="load it without streaming")
    own = None if data.split is None else str(data.split)
    splits.check_split(source, own, allow_test=allow_test)
    if split is not None and split != own:
        raise DataError(
            f"it has no split {split!r}, it is {f'the split {own!r}' if own else 'one whole'}",
            source=source,
            remedy="leave --split (split=) out",
        )
    return LibraryTable(data, source)


def open_named(text: str, split: str | None, *, allow_test: bool) -> LibraryTable:
    """The split (default train) of a data set that `datasets` finds under this name.

    `text` is as `named` reads it; a split that it says itself is the one.
    """
    name, config, own = named(text)
    if own is not None and split not in (None, own):
        raise DataError(
            f"it says the split {own!r}, and {split!r} is wanted",
            source=text,
            remedy="leave the split out of the name, or leave --split (split=) out",
        )
    wanted = own or split or splits.TRAIN
    splits.check_split(text, wanted, allow_test=allow_test)
    library = needed("datasets", f"{name} is no file or folder here; a data set's name")
    try:
        configs = () if config is None else (config,)
        data = library.load_dataset(name, *configs, split=wanted)
    except Exception as error:
        raise DataError(
            f"it is no file or folder here, and datasets cannot load it: {_first_line(error)}",
            source=text,
            remedy="check the path or the name; without a network, save the data set with "
            "save_to_disk elsewhere and give its folder",
        ) from error
    return LibraryTable(data, text)


def _undecoded(data: Any, column: str) -> Any:
    """The column with its images as bytes or paths: `datasets` would decode any format."""
    feature = data.features[column]
    return data.cast_column(column, replace(feature, decode=False))


def _kind(feature: Any) -> Column:
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else "other"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
