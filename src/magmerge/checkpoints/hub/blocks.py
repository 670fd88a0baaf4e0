"""Blocks of remote files, kept for the pieces that are read in turn, and read ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import ClassVar

from magmerge.checkpoints.hub.remote_file import RemoteFile
from magmerge.core.model_strings import Part

BLOCK = 4 << 20
"""Bytes that are asked for at once."""
KEPT = 64
"""Blocks of all files together that stay in memory."""
AT_ONCE = 8
"""Requests at a time."""


class Blocks:
    """A remote file as blocks; each is asked for once for all pieces in it, while it is kept."""

    _lock = threading.Lock()
    _kept: ClassVar[OrderedDict[tuple[Part, str, int], Future[bytes]]] = OrderedDict()

    def __init__(self, remote: RemoteFile) -> None:
        self.remote = remote

    def fill(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on; CheckpointError where they do not come."""
        done = 0
        while done < len(view):
            number, start = divmod(offset + done, BLOCK)
            coming = self._block(number)
            if (number + 1) * BLOCK < self.remote.size:
                self._block(number + 1)
            part = coming.result()[start : start + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)

    def _block(self, number: int) -> Future[bytes]:
        """A block that is here, or on its way. One that failed is asked for anew."""
        key = (self.remote.part, self.remote.name, number)
        with self._lock:
            coming = self._kept.get(key)
            if coming is not None and coming.done() and coming.exception() is not None:
                coming = None
            if coming is None:
                start = number * BLOCK
                stop = min(start + BLOCK, self.remote.size)
                coming = self._kept[key] = _pool().submit(self.remote.read, start, stop)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return coming


@lru_cache(1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="magmerge-hub")
