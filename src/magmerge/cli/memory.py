"""How the command line's own process treats memory that was freed."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
LARGE = 1 << 20


def return_memory_at_once() -> None:
    """Let glibc give large blocks back when they are freed, as the plan's stated peak supposes.

    By default it keeps blocks of up to 32 MB, and the layers of several threads leave holes. This
    is a setting of the whole process, so only verbs of the command line make it, and only those
    that merge: a model's forward pass, with its many small temporaries, is slower by it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
