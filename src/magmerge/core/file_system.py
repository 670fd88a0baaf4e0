"""What each system does in its own way: locks, exchanged names, reads and writes at a place, and
the pages of files that it keeps in memory.

Where a system lacks one, what stands in for it is here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # all others
    msvcrt = None

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Opens no link, where the system knows that."""
BINARY = getattr(os, "O_BINARY", 0)
"""Bytes as they are: Windows changes line ends else."""
MOVES_OPEN = os.name != "nt"
"""Whether what is open can be renamed."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
FAR = 0x7FFF_0000
"""Where a lock of a byte range is, which on Windows nobody else may write to."""
SHARE = 2
"""Files together larger than one part in so many of the machine's memory are large."""
_PLACE = threading.Lock()


def lock(handle: int) -> bool:
    """Whether an open file is now locked for this process; False where another has it.

    A system without locks locks nothing, and lets all in.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def lock_when_free(handle: int) -> None:
    """The same, waiting for whoever has it."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while not lock(handle):
        threading.Event().wait(0.2)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once, so that something is at either at any moment; False where the
    system cannot, and nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)


def read_at(handle: int, view: memoryview, offset: int) -> int:
    """Read from a place of an open file into `view`; how many bytes came, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [view], offset)
    with _PLACE:
        os.lseek(handle, offset, os.SEEK_SET)
        content = os.read(handle, len(view))
    view[: len(content)] = content
    return len(content)


def write_at(handle: int, data: memoryview, offset: int) -> int:
    """Write at a place of an open file; how many bytes were taken."""
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, data, offset)
    with _PLACE:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.write(handle, data)


def sync_folder(folder: Path) -> None:
    """See the names in a folder to the disk, where a folder can be opened for that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """See all files below a folder to the disk, and their names in it and in the folders there."""
    for place, _, names in os.walk(folder):
        for name in names:
            with (Path(place) / name).open("r+b") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(place))


def is_anothers(state: os.stat_result) -> bool:
    """Whether a file is another user's, as far as the system tells."""
    user = getattr(os, "geteuid", None)
    return user is not None and state.st_uid != user()


def are_large(sizes: Iterable[int]) -> bool:
    """Whether files of these sizes would push out of memory what others have in it. Smaller ones
    stay there for who reads them next.
    """
    memory = memory_size()
    return memory is not None and sum(sizes) > memory // SHARE


def memory_size() -> int | None:
    """Bytes of memory that the machine has; None where that is not known."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def size_of(file: Path) -> int:
    """Bytes of a file; 0 for one that is not on this machine."""
    with suppress(OSError):
        return file.stat().st_size
    return 0


def read_in_order(handle: int) -> None:
    """Tell the system that a file is mostly read from its beginning to its end, so that it reads
    further ahead.
    """
    _advise(handle, 0, 0, "POSIX_FADV_SEQUENTIAL")


def give_back(handle: int, start: int, size: int) -> None:
    """Let go of these bytes' pages: what is written to them is on its way to the disk from now on,
    and those that are there already are forgotten. `size` 0: to the end of the file.
    """
    _advise(handle, start, size, "POSIX_FADV_DONTNEED")


def _advise(handle: int, start: int, size: int, advice: str) -> None:
    """Advice that a file system may decline, and that not every system takes."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        with suppress(OSError):
            advise(handle, start, size, getattr(os, advice))
