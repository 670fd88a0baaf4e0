"""What runs left that did not come to their end: found by its names, and put right or removed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from magmerge.checkpoints.output.ledger import LEDGER
from magmerge.checkpoints.output.own_files import LOCK, is_locked
from magmerge.checkpoints.output.shelf import MARK, Shelf, clear_shelf
from magmerge.checkpoints.output.staging import PUBLISHING, Staging, check_mine
from magmerge.core.errors import CheckpointError, OutputError

LEFT = re.compile(r"\.(?P<name>.+)\.magmerge-(?P<kind>partial|old|documents)", re.DOTALL)
TEMPORARY = re.compile(r"\.magmerge-partial-\w+")
YOUNG = 3600.0
"""Seconds for which a temporary file of no usual name may still be somebody's: it has no lock."""
WORDS = {
    "partial": "an unfinished result",
    "old": "a result that was being replaced",
    "documents": "results of earlier documents",
    "temporary": "an unfinished file",
}


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that a run left: `path`, of what `kind`, for which output, how many bytes, and when
    it was last changed (seconds since 1970). `at_work`: a run may be writing it now. `resumable`:
    the same command with --resume goes on from it.
    """

    path: Path
    kind: str
    output: Path | None
    size: int
    changed: float
    at_work: bool
    resumable: bool

    @property
    def words(self) -> str:
        """What it is."""
        return WORDS[self.kind]


def clean(folder: str | Path = ".", *, remove: bool = False) -> tuple[Leftover, ...]:
    """What killed runs left in a folder and those below it; with `remove` it is gone afterwards.

    What was being published is finished, and what was being replaced is put back. What a run is at
    work on stays, and so does everything that magmerge did not write. CheckpointError where there
    is no such folder; OutputError where something cannot be removed.
    """
    place = Path(folder)
    if not place.is_dir():
        raise CheckpointError("no such folder", source=place, remedy="check the path")
    leftovers = tuple(sorted(_leftovers(place), key=lambda left: left.path))
    if remove:
        for left in leftovers:
            if not left.at_work:
                _remove(left)
    return leftovers


def _leftovers(folder: Path) -> Iterator[Leftover]:
    for place, folders, files in os.walk(folder):
        for name in [name for name in folders if LEFT.fullmatch(name)]:
            folders.remove(name)
            yield _of_folder(Path(place) / name)
        for name in files:
            path, usual = Path(place) / name, LEFT.fullmatch(name)
            if not (TEMPORARY.fullmatch(name) or (usual and usual["kind"] == "partial")):
                continue
            with suppress(OSError):
                told = path.lstat()
                young = time.time() - told.st_mtime < YOUNG
                work = is_locked(path) if usual else young
                yield Leftover(
                    path, "temporary", None, told.st_size, told.st_mtime, work, resumable=False
                )


def _of_folder(path: Path) -> Leftover:
    match = LEFT.fullmatch(path.name)
    assert match is not None
    size, changed = 0, path.lstat().st_mtime
    for place, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                told = (Path(place) / name).lstat()
                size, changed = size + told.st_size, max(changed, told.st_mtime)
    # A result that is replaced has the lock of the one that replaces it.
    holder = path.with_name(f".{match['name']}.magmerge-partial")
    at_work = is_locked(path / MARK) if match["kind"] == "documents" else is_locked(holder / LOCK)
    return Leftover(
        path,
        match["kind"],
        path.with_name(match["name"]),
        size,
        changed,
        at_work,
        resumable=match["kind"] == "partial" and (path / LEDGER).is_file(),
    )


def _remove(left: Leftover) -> None:
    """Remove it, or put right what it was in the middle of; OutputError where that fails."""
    try:
        check_mine(left.path)
        if left.output is None:
            left.path.unlink(missing_ok=True)
        elif left.kind == "documents":
            clear_shelf(Shelf(left.path), len(os.listdir(left.path)))
        else:
            Staging.put_right(left.output, single=(left.path / PUBLISHING).is_file())
        if left.path.is_dir() and not os.listdir(left.path):
            shutil.rmtree(left.path)
    except OSError as error:
        raise OutputError(
            f"cannot be removed: {error.strerror}",
            source=left.path,
            remedy="see that you may write to its folder",
        ) from error
