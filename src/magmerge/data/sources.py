"""From what a user names to rows: the table or file behind it, with the test split refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from magmerge.core.errors import suggestion
from magmerge.data import idx, image_folder, library, splits
from magmerge.data.draw import draw, draw_ready
from magmerge.data.parquet import ParquetTable
from magmerge.data.program_inputs import from_memory
from magmerge.data.ready_files import ArrayFile, ReadyFile, TensorFile
from magmerge.data.rows import DataError, Rows, SampleDraw, Source
from magmerge.data.sample_table import Table
from magmerge.data.text_tables import ImageList, JsonLines, Separated, TextLines

TABLES: Mapping[str, Callable[[Path], Table]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JsonLines),
    **dict.fromkeys((".csv", ".tsv"), Separated),
    **dict.fromkeys((".txt", ".text"), TextLines),
    ".parquet": ParquetTable,
    ".images": ImageList,
    ".mat": idx.open_digits,
}
WHOLE = (".images", ".mat")
"""Tables that have no column of splits, and are not opened to find that out."""
READY: Mapping[str, Callable[[Path], ReadyFile]] = {
    ".npy": ArrayFile,
    ".safetensors": TensorFile,
}


def read_samples(source: Source, how: SampleDraw) -> Rows:
    """Draw rows from a source, without replacement; a larger draw extends a smaller one.

    `source` is a file (.jsonl, .parquet, .csv, .tsv, .txt, .npy, .safetensors, .images, an idx file
    of images, SVHN's .mat), a folder of images, a folder saved by datasets, or a data set's name:
    NAME, NAME:CONFIG or NAME:CONFIG:SPLIT. What is given in memory (a tensor, a mapping of keywords
    to tensors, a list of texts, an iterable of model inputs) is used as it is and whole.
    Rows whose column `split` says test are not drawn. Labels are read only where their column is
    named (of a folder of images: the classes' folders). DataError for what cannot be read, for too
    few rows, and for the test split, unless it is allowed.
    """
    if library.is_data_set(source):
        return draw(library.open_object(source, f"the data of {how.name}", how), how)
    if not isinstance(source, str | Path):
        return from_memory(source, how.name)
    content = _open(source, how)
    return draw(content, how) if isinstance(content, Table) else draw_ready(content, how)


def has_splits(source: str | Path) -> bool:
    """Whether one source holds several splits: in a column `split`, in folders, or as a data set.

    DataError where it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        several = (path / library.MARKS[0]).is_file()
        return several or bool(image_folder.split_folders(path))
    if path.suffix.lower() in {*READY, *WHOLE} or idx.is_images(path):
        return False
    if path.is_file():
        return splits.COLUMN in getattr(_open_file(path, None), "columns", ())
    return library.split_name(str(source))[2] is None


def split_names(source: str | Path) -> tuple[str, ...]:
    """The splits of a source that has several, as far as it tells them without being loaded.

    Nothing is told of a data set that is known by its name. DataError where it cannot be read.
    """
    path = Path(source).expanduser()
    if not has_splits(source):
        return ()
    if path.is_dir():
        return library.saved_splits(path) or tuple(image_folder.split_folders(path))
    if not path.is_file():
        return ()
    table = _open_file(path, None)
    assert isinstance(table, Table)
    rows = table.read(range(len(table)), [splits.COLUMN])
    names = dict.fromkeys(row.values.get(splits.COLUMN) for row in rows)
    return tuple(name for name in names if isinstance(name, str))


def _open(source: str | Path, how: SampleDraw) -> Table | ReadyFile:
    """The table or file of ready inputs behind a path or name; DataError if there is none."""
    path = Path(source).expanduser()
    splits.check_path(how, path)
    splits.check_split(how, str(path), how.split)
    try:
        if path.is_dir() and library.is_saved(path):
            return library.open_saved(path, how)
        if path.is_dir():
            return image_folder.open_folder(path, how)
        if path.is_file():
            return _open_file(path, how.split)
    except (OSError, ValueError) as error:
        # A ValueError is a NUL byte in the path.
        raise DataError(f"cannot be read: {error}", source=path, remedy="check the path") from error
    outside = path.is_absolute() or str(source).startswith((".", "~")) or not str(source).strip()
    if outside or path.suffix.lower() in {*TABLES, *READY}:
        near: Iterable[str] = ()
        if path.parent.is_dir():
            near = [entry.name for entry in path.parent.iterdir()]
        remedy = suggestion(path.name, near)
        raise DataError(
            "no such file or folder",
            source=path,
            remedy=remedy if remedy.startswith("did you mean") else "check the path",
        )
    return library.open_named(str(source), how)


def _open_file(path: Path, split: str | None) -> Table | ReadyFile:
    suffix = path.suffix.lower()
    if idx.is_images(path) and split is None:
        return idx.open_idx(path)
    if suffix not in TABLES and suffix not in READY:
        raise DataError(
            f"no known kind of data: {suffix or 'a name without ending'}",
            source=path,
            remedy=f"{suggestion(suffix, [*TABLES, *READY])}; or give a folder of images",
        )
    content = TABLES[suffix](path) if suffix in TABLES else READY[suffix](path)
    if split is not None and splits.COLUMN not in getattr(content, "columns", ()):
        raise DataError(
            f"it has no split {split!r}: it has no column {splits.COLUMN!r}",
            source=path,
            remedy="name the split's own file, and leave --split (split=) out",
        )
    return content
