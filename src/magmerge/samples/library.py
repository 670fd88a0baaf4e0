"""Data sets of the `datasets` library: saved in a folder, loaded by name, or given as objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        # Other columns may hold images, which would be decoded for nothing.
        data = self._data.select_columns([name for name in columns if name in self.columns])
        for row in rows:
            try:
                values = data[int(row)]
            except Exception as error:
                raise DataError(
                    f"row {row} cannot be read: {error}", source=self.source, remedy="save it anew"
                ) from error
            yield Row(f"row {row}", values)


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


def open_named(name: str, split: str | None, *, allow_test: bool) -> LibraryTable:
    """The split (default train) of a data set that `datasets` finds under this name."""
    wanted = splits.TRAIN if split is None else split
    splits.check_split(name, wanted, allow_test=allow_test)
    library = needed("datasets", f"{name} is no file or folder here; a data set's name")
    try:
        data = library.load_dataset(name, split=wanted)
    except Exception as error:
        raise DataError(
            f"it is no file or folder here, and datasets cannot load it: {_first_line(error)}",
            source=name,
            remedy="check the path or the name; without a network, save the data set with "
            "save_to_disk elsewhere and give its folder",
        ) from error
    return LibraryTable(data, name)


def _kind(feature: Any) -> Column:
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else "other"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
