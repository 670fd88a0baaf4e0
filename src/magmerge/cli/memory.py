"""How the command line's own process treats memory that was freed."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 1 << 24
KEPT = 1 << 25


def return_memory_at_once() -> None:
    """Let glibc keep the memory of pieces for reuse, and give that of whole layers back at once.

    By default it does neither reliably: it gives small blocks back, whose pages must then be made
    anew for every piece, and keeps large ones, beyond the plan's stated peak. This is a setting of
    the whole process, so only verbs of the command line make it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)
