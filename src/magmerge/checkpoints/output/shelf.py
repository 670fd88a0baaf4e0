"""Where the results of earlier documents lie while the last one is made: beside the output."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from magmerge.checkpoints.output.own_files import disk_errors, foreign, lock_file, output_error

MARK = ".magmerge"
"""The file that tells a shelf from a folder of the user's; it holds the lock."""


class Shelf(NamedTuple):
    """A folder with a result for each document but the last, by its number."""

    folder: Path

    def place(self, number: int) -> Path:
        """Where the result of this document is."""
        return self.folder / f"document-{number + 1}"

    def holds(self, file: Path) -> bool:
        """Whether a file is of a result here."""
        return self.folder in file.parents


@contextmanager
def shelf_for(out: str | Path | None, count: int, *, resume: bool) -> Iterator[Shelf]:
    """A shelf for `count` results; none is made for none.

    Beside the output it is locked, so that no other run takes it; what a killed run left in it is
    made anew. OutputError where something that is no shelf of magmerge's has its name. Without an
    output it stays until the program ends.
    """
    if not count:
        yield Shelf(Path())
        return
    if out is None:
        folder = Path(tempfile.mkdtemp(prefix="magmerge-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        yield Shelf(folder)
        return
    target = Path(out)
    shelf = Shelf(target.absolute().parent / f".{target.name}.magmerge-documents")
    lock = _taken(shelf.folder, target)
    done = False
    try:
        yield shelf
        done = True
    finally:
        if done or not resume:
            clear_shelf(shelf, count)
        os.close(lock)


def _taken(folder: Path, target: Path) -> int:
    """The shelf's lock; the shelf is made where there is none."""
    # An empty folder is what a kill leaves just before it is marked, or just before it is gone.
    marked = (folder / MARK).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.is_symlink() or (folder.exists() and not marked):
        problem = "it stands where magmerge would put the results of earlier documents"
        raise output_error(folder, problem, "move it away, or choose another output")
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        return lock_file(folder / MARK, target)


def clear_shelf(shelf: Shelf, count: int) -> None:
    """Remove the results and the shelf; whatever else somebody put there stays."""
    for number in range(count):
        place = shelf.place(number)
        if place.is_dir() and not place.is_symlink() and not foreign(place, ()):
            shutil.rmtree(place, ignore_errors=True)
    if all(entry.name == MARK for entry in shelf.folder.iterdir()):
        (shelf.folder / MARK).unlink()
        shelf.folder.rmdir()
