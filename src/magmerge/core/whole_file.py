"""One small file, written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from magmerge.core.errors import OutputError
from magmerge.core.file_system import (
    BINARY,
    MOVES_OPEN,
    NOFOLLOW,
    is_anothers,
    lock,
    sync_folder,
)


def check_free(path: Path, *, overwrite: bool) -> None:
    """OutputError where a file cannot be written: it is there, is a folder, or has no folder."""
    # os.path, unlike pathlib, says no to a name that is longer than the system allows.
    if os.path.isdir(path):
        raise OutputError("it is a folder", source=path, remedy="name a file in it")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            "it exists already", source=path, remedy="pass --yes (overwrite=True) to replace it"
        )
    if not os.path.isdir(path.absolute().parent):
        raise OutputError("its folder does not exist", source=path, remedy="make it first")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write in one step, as readable as the user's other files; OutputError if it fails."""
    try:
        replace_whole(path, content)
    except OSError as error:
        raise refused(error, path) from error


def refused(error: OSError, path: Path, left: str = "") -> OutputError:
    """That the system would not write there, and what helps; `left` ends the remedy."""
    problem, remedy = (
        f"cannot be written: {error.strerror}",
        "choose a folder that you may write to",
    )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem, remedy = "no space left on the disk", "free some space or choose another output"
    elif error.errno == errno.EIO:
        remedy = "its disk fails there: choose an output on another one"
    elif error.errno == errno.EFBIG:
        remedy = "allow larger files: ulimit -f unlimited; some disks hold none of that size"
    elif error.errno == errno.EMFILE:
        remedy = "allow more open files: ulimit -n 4096"
    return OutputError(problem, source=path, remedy=f"{remedy}{left}")


def replace_whole(path: Path, content: str | bytes) -> None:
    """The same, of text or bytes; OSError if it fails, and then nothing is left."""
    with unfinished(path) as place, place.open("wb") as stream:
        stream.write(content if isinstance(content, bytes) else content.encode())


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """An empty file under a hidden name beside `path`, which gets that name, and is seen to the
    disk, when the block ends; after an error nothing is left of it.

    What a killed run left of it is begun anew by the next, by its lock no run at work loses its
    own, and `magmerge clean` knows both.
    """
    handle, place = _begun(path)
    try:
        try:
            yield place
            # What filled it may have put another file there.
            with place.open("r+b") as stream:
                os.fsync(stream.fileno())
            if not MOVES_OPEN:
                os.close(handle)
            os.replace(place, path)
        finally:
            with suppress(OSError):
                os.close(handle)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(place)
        raise


def _begun(path: Path) -> tuple[int, Path]:
    """The locked handle and the name of such a file: a name of its own where another run, or
    somebody else's file, has the usual one.
    """
    place = path.with_name(f".{path.name}.magmerge-partial")
    flags = os.O_RDWR | os.O_CREAT | NOFOLLOW | BINARY
    with suppress(OSError):
        handle = os.open(place, flags, 0o666)
        with suppress(OSError):
            state = os.fstat(handle)
            plain = stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and not is_anothers(state)
            # It may have got its final name before it was locked.
            if plain and lock(handle) and os.stat(place).st_ino == state.st_ino:
                os.ftruncate(handle, 0)
                return handle, place
        os.close(handle)
    other = path.with_name(f".magmerge-partial-{token_hex(4)}")
    return os.open(other, flags | os.O_EXCL, 0o666), other
