"""A folder of images, or of one folder of images for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from magmerge.data import splits
from magmerge.data.rows import DataError, SampleDraw
from magmerge.data.sample_table import SampleRow, Table

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".ppm", ".bmp", ".tif", ".tiff"})


class ImageFolder(Table):
    """Image files in the order of their names; the column `label` is the class's folder."""

    columns = {"image": "image"}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.source, self._folder = str(folder), folder
        inner = {path.name: images(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        self._files = [*images(folder), *(file for files in inner.values() for file in files)]
        self.classes = {"label": tuple(name for name, files in inner.items() if files)}
        if not self._files:
            raise DataError(
                "there are no images in this folder, nor one level below",
                source=folder,
                remedy=f"it takes files that end in {', '.join(sorted(SUFFIXES))}, "
                "in one folder or in one for each class",
            )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[SampleRow]:
        for row in rows:
            file = self._files[row]
            label = None if file.parent == self._folder else file.parent.name
            yield SampleRow(file.name, {"image": file, "label": label})


def images(folder: Path) -> list[Path]:
    """The image files right in a folder, by name."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def open_folder(folder: Path, how: SampleDraw) -> ImageFolder:
    """The folder itself, or that of the split where its folders are splits and not classes."""
    names = split_folders(folder)
    if names:
        return ImageFolder(folder / splits.among(how, names, str(folder)))
    if how.split is not None:
        raise DataError(
            f"it has no split {how.split!r}: its folders are no splits",
            source=folder,
            remedy="name the split's own folder, and leave --split out",
        )
    return ImageFolder(folder)


def split_folders(folder: Path) -> list[str]:
    """The names of the folders within, if all of them are names of splits."""
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return inner if inner and all(name.lower() in splits.NAMES for name in inner) else []
