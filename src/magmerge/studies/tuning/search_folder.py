"""The folder of a search: one run's alone, and never somebody's other things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from magmerge.checkpoints.output.own_files import lock_file
from magmerge.core.errors import OutputError, shortened
from magmerge.studies.tuning.trials import FILE
from magmerge.studies.tuning.tuning_plot import FIGURES

BEST = "best.yml"
LOCK = ".lock"


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """OutputError where the folder holds a search that is not gone on with, or other things."""
    if (folder / FILE).exists() and not (resume or overwrite):
        raise OutputError(
            "a search is there already",
            source=folder,
            remedy="go on with it with --resume (resume=True), or begin anew with --yes "
            "(overwrite=True)",
        )
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    # What a killed run leaves before its first trial begins with a dot.
    others = sorted(name for name in there if not name.startswith("."))
    if FILE not in there and others:
        raise OutputError(
            f"it holds other things than a search: {shortened(others)}",
            source=folder,
            remedy="name another output, or move these away yourself",
        )


@contextmanager
def own_folder(folder: Path | None, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder of the search, which is this run's alone; OutputError where it is taken."""
    if folder is None:
        yield
        return
    _check_folder(folder, resume=resume, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be made: {error.strerror}", source=folder, remedy="name another output"
        ) from error
    lock = lock_file(folder / LOCK, folder)
    try:
        for name in (BEST, *FIGURES) if not resume else ():
            (folder / name).unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
            # A search that did not begin leaves nothing.
            folder.rmdir()
        os.close(lock)
