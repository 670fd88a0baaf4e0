"""The pages of files that the system keeps in memory: given back behind files that are large."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SHARE = 2
"""Files together larger than one part in so many of the machine's memory are large."""


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
