"""One small file, written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from magmerge.core.errors import OutputError


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".magmerge-partial-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def sync_folder(folder: Path) -> None:
    """See the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
