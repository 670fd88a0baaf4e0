"""From a path or a name to the table or file behind it, with the test split refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from magmerge.errors import suggestion
from magmerge.samples import idx, image_folder, library, splits
from magmerge.samples.arrays import ArrayFile, ReadyFile, TensorFile
from magmerge.samples.digit_matrix import DigitMatrix
from magmerge.samples.image_list import ImageList
from magmerge.samples.line_tables import JsonLines, Separated, TextLines
from magmerge.samples.rows import DataError
from magmerge.samples.table import Table

TABLES: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".csv": Separated,
    ".tsv": Separated,
    ".txt": TextLines,
    ".text": TextLines,
    ".images": ImageList,
    ".mat": DigitMatrix,
}
WHOLE = (".images", ".mat")
"""Tables that have no column of splits, and are not opened to find that out."""
READY: Mapping[str, Callable[[Path], ReadyFile]] = {
    ".npy": ArrayFile,
    ".safetensors": TensorFile,
}


def open_source(source: str | Path, split: str | None, *, allow_test: bool) -> Table | ReadyFile:
    """The table or file of ready inputs behind a path or name; DataError if there is none."""
    path = Path(source).expanduser()
    splits.check_path(path, allow_test=allow_test)
    splits.check_split(str(path), split, allow_test=allow_test)
    try:
        if path.is_dir():
            return _open_folder(path, split, allow_test=allow_test)
        if path.is_file():
            return _open_file(path, split)
    except (OSError, ValueError) as error:
        # A ValueError is a NUL byte in the path.
        raise DataError(f"cannot be read: {error}", source=path, remedy="check the path") from error
    outside = path.is_absolute() or str(source).startswith((".", "~")) or not str(source).strip()
    if outside or path.suffix.lower() in {*TABLES, *READY}:
        raise _missing(path)
    return library.open_named(str(source), split, allow_test=allow_test)


def has_splits(source: str | Path) -> bool:
    """Whether one source holds several splits: in a column `split`, in folders, or as a data set.

    DataError where it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return library.is_saved_with_splits(path) or bool(image_folder.split_folders(path))
    if path.suffix.lower() in {*READY, *WHOLE} or idx.is_images(path):
        return False
    if path.is_file():
        return splits.COLUMN in getattr(_open_file(path, None), "columns", ())
    return library.named(str(source)).split is None


def _open_folder(path: Path, split: str | None, *, allow_test: bool) -> Table:
    if library.is_saved(path):
        return library.open_saved(path, split, allow_test=allow_test)
    folder = image_folder.of_split(path, split, allow_test=allow_test)
    return image_folder.ImageFolder(folder)


def _open_file(path: Path, split: str | None) -> Table | ReadyFile:
    suffix = path.suffix.lower()
    if idx.is_images(path) and split is None:
        return idx.IdxImages(path)
    if suffix not in TABLES and suffix not in READY:
        raise DataError(
            f"no known kind of data: {suffix or 'a name without ending'}",
            source=path,
            remedy=f"{suggestion(suffix, [*TABLES, *READY])}; or give a folder of images",
        )
    opened = TABLES[suffix](path) if suffix in TABLES else READY[suffix](path)
    if split is not None and splits.COLUMN not in getattr(opened, "columns", ()):
        raise DataError(
            f"it has no split {split!r}: it has no column {splits.COLUMN!r}",
            source=path,
            remedy="name the split's own file, and leave --split (split=) out",
        )
    return opened


def _missing(path: Path) -> DataError:
    near: Iterable[str] = ()
    if path.parent.is_dir():
        near = [entry.name for entry in path.parent.iterdir()]
    remedy = suggestion(path.name, near)
    if not remedy.startswith("did you mean"):
        remedy = "check the path"
    return DataError("no such file or folder", source=path, remedy=remedy)
