"""Data sets of the `datasets` library: saved in a folder, loaded by name, or given as objects."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.core.extras import needed
from magmerge.data import splits
from magmerge.data.rows import DataError, SampleDraw
from magmerge.data.sample_table import Column, SampleRow, Table

MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What `save_to_disk` leaves in a folder."""


class LibraryTable(Table):
    """One split of a data set; of one that was saved in a `folder`, with images from there only."""

    def __init__(self, data: Any, source: str, folder: Path | None = None) -> None:
        self.source, self._data, self._folder = source, data, folder
        self.columns = {name: _kind(feature) for name, feature in data.features.items()}
        self.classes = {
            name: tuple(feature.names)
            for name, feature in data.features.items()
            if type(feature).__name__ == "ClassLabel"
        }

    def __len__(self) -> int:
        return len(self._data)

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[SampleRow]:
        # Images are decoded when they are asked for, and other columns for nothing.
        own = [name for name in columns if name in self.columns]
        images = [name for name in own if self.columns[name] == "image"]
        data = self._data.select_columns([name for name in own if name not in images])
        stored = {name: self._files(name) for name in images}
        for row in map(int, rows):
            try:
                values = dict(data[row]) if data.column_names else {}
            except Exception as error:
                raise DataError(
                    f"row {row} cannot be read: {error}", source=self.source, remedy="save it anew"
                ) from error
            place = f"{self.source}, row {row}"
            pictures = {
                name: StoredPicture(part, row, name, place, self._folder)
                for name, part in stored.items()
            }
            yield SampleRow(f"row {row}", values | pictures)

    def _files(self, column: str) -> Any:
        """A column with its images as bytes or paths: `datasets` would decode any format."""
        data = self._data.select_columns([column])
        return data.cast_column(column, replace(data.features[column], decode=False))


class StoredPicture(NamedTuple):
    """An image in a data set, which is read and decoded when it is asked for."""

    data: Any
    row: int
    column: str
    place: str
    folder: Path | None = None

    def content(self) -> BytesIO | Path:
        """The image's file as it is stored; ValueError where the row has none here."""
        stored = self.data[self.row][self.column]
        if stored is None:
            raise ValueError("the row has no image")
        if stored["bytes"] is not None:
            return BytesIO(stored["bytes"])
        path = Path(str(stored["path"]))
        if self.folder is not None and not _is_inside(path, self.folder):
            raise ValueError(f"it names a file outside its folder: {path}")
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    def __str__(self) -> str:
        return self.place


def split_name(text: str) -> tuple[str, str | None, str | None]:
    """A data set's name, its configuration and its split, as far as the text says them.

    NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT; the split may be cut as `datasets` does it:
    sms_spam:plain_text:train[:80%].
    """
    name, _, rest = text.partition(":")
    config, _, split = rest.partition(":")
    return name, config or None, split or None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of datasets made this folder."""
    return any((folder / mark).is_file() for mark in MARKS)


def saved_splits(folder: Path) -> tuple[str, ...]:
    """The splits of a saved DatasetDict; none of any other folder."""
    try:
        content = json.loads((folder / MARKS[0]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return ()
    names = content.get("splits", ()) if isinstance(content, dict) else ()
    return tuple(name for name in names if isinstance(name, str))


def is_data_set(source: object) -> bool:
    """Whether an object is a Dataset or DatasetDict."""
    return type(source).__module__.partition(".")[0] == "datasets" and (
        hasattr(source, "features") or isinstance(source, Mapping)
    )


def open_saved(folder: Path, how: SampleDraw) -> LibraryTable:
    """The split of a data set that `save_to_disk` wrote."""
    _check_files(folder)
    library = needed("datasets", "a folder saved by datasets")
    remedy = "save it anew with save_to_disk, or give its rows as JSON Lines"
    with _failures(str(folder), "datasets cannot load it", remedy):
        data = library.load_from_disk(str(folder))
    return open_object(data, str(folder), how, folder)


def _check_files(folder: Path) -> None:
    """DataError where a saved data set names files that are not in its folder."""
    for place in (folder, *(folder / name for name in _names(folder / MARKS[0], "splits"))):
        files = _names(place / MARKS[2], "_data_files")
        for path in (place, *(place / name for name in files)):
            if not _is_inside(path, folder):
                raise DataError(
                    f"it names a file outside its folder: {path}",
                    source=str(folder),
                    remedy="do not use this data set: a sound one names files in itself",
                )


def _names(file: Path, key: str) -> list[str]:
    """The names of splits, or of files, that a JSON file of a data set lists."""
    try:
        listed = json.loads(file.read_bytes())[key]
        return [str(entry["filename"] if isinstance(entry, dict) else entry) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # What is not of its form is for datasets to tell.
        return []


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is the folder, or leads into it."""
    real, home = (os.path.realpath(place) for place in (path, folder))
    return real == home or real.startswith(f"{home}{os.sep}")


def open_object(
    data: Any, source: str, how: SampleDraw, folder: Path | None = None
) -> LibraryTable:
    """The split of a Dataset, which may know which it is, or of a DatasetDict."""
    if isinstance(data, Mapping):
        return LibraryTable(data[splits.among(how, data, source)], source, folder)
    if not hasattr(data, "select_columns") or not hasattr(data, "__len__"):
        raise DataError("it is streamed", source=source, remedy="load it without streaming")
    own = None if data.split is None else str(data.split)
    splits.check_split(how, source, own)
    if how.split not in (None, own):
        raise DataError(
            f"it has no split {how.split!r}, it is {f'the split {own!r}' if own else 'one whole'}",
            source=source,
            remedy="leave --split (split=) out",
        )
    return LibraryTable(data, source, folder)


def open_named(text: str, how: SampleDraw) -> LibraryTable:
    """The split (default train) of a data set that `datasets` finds under this name.

    `text` is as `split_name` reads it; a split that it says itself is the one.
    """
    name, config, own = split_name(text)
    if own is not None and how.split not in (None, own):
        raise DataError(
            f"it says the split {own!r}, and {how.split!r} is wanted",
            source=text,
            remedy="leave the split out of the name, or leave --split (split=) out",
        )
    part = own or how.split or splits.TRAIN
    splits.check_split(how, text, part)
    library = needed("datasets", f"{name} is no file or folder here; a data set's name")
    problem = "it is no file or folder here, and datasets cannot load it"
    remedy = (
        "check the path or the name; without a network, save the data set with save_to_disk "
        "elsewhere and give its folder"
    )
    configs = () if config is None else (config,)
    with _failures(text, problem, remedy):
        return LibraryTable(library.load_dataset(name, *configs, split=part), text)


@contextmanager
def _failures(source: str, problem: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{problem}: {text}", source=source, remedy=remedy) from error


def _kind(feature: Any) -> Column:
    if type(feature).__name__ == "Image":
        return "image"
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else "other"
