"""Files that stay open while they are read or written, and reads that are whole or an error."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

from magmerge.core.errors import CheckpointError
from magmerge.core.file_system import BINARY, read_at, read_in_order

KEPT_OPEN = 64
"""Files that stay open, at most."""


READ_REMEDIES = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EIO: "its disk fails there: copy the file to another one, or fetch it anew",
    errno.ENOENT: "keep the inputs unchanged while magmerge runs",
    errno.ESTALE: "its file system was mounted anew meanwhile: start again",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
}
"""What helps where the system refuses to give a file."""


class Handles:
    """Open files: the first of all stay open, KEPT_OPEN and no more than a quarter of those that a
    process may have; others open for each use.
    """

    count = 0
    lock = threading.RLock()  # a finalizer may run while this thread holds it

    def __init__(self, flags: int = os.O_RDONLY) -> None:
        self._flags = flags
        self._open: dict[Path, int] = {}
        weakref.finalize(self, _close_all, self._open)

    @contextmanager
    def opened(self, file: Path) -> Iterator[int]:
        """The file's descriptor."""
        handle = self._open.get(file)
        if handle is None:
            handle = self._kept_open(file)
        if handle is not None:
            yield handle
            return
        handle = os.open(file, self._flags | BINARY, 0o666)
        try:
            yield handle
        finally:
            os.close(handle)

    def _kept_open(self, file: Path) -> int | None:
        """The file's descriptor from now on; None where too many are open."""
        with self.lock:
            if file not in self._open and Handles.count < _most_open():
                self._open[file] = os.open(file, self._flags | BINARY, 0o666)
                if self._flags == os.O_RDONLY:
                    read_in_order(self._open[file])
                Handles.count += 1
            return self._open.get(file)

    def close(self) -> None:
        """Close those that are open, when nobody uses them any more."""
        _close_all(self._open)


def _most_open() -> int:
    if resource is None:
        return KEPT_OPEN
    return min(KEPT_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def _close_all(handles: dict[Path, int]) -> None:
    with Handles.lock:
        while handles:
            os.close(handles.popitem()[1])
            Handles.count -= 1


@contextmanager
def read_errors(path: Path | str) -> Iterator[None]:
    """Turns an error of the system while a file is read into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise _read_error(error, path) from error


def _read_error(error: OSError, path: Path | str) -> CheckpointError:
    remedy = READ_REMEDIES.get(error.errno or 0, "see whether it can be read, or fetch it anew")
    return CheckpointError(f"cannot be read: {error.strerror}", source=path, remedy=remedy)


def read_into(handle: int, view: memoryview, file: Path, offset: int, name: str) -> None:
    """Fill `view` with a file's bytes from `offset` on; CheckpointError where the file is short."""
    done = 0
    while done < len(view):
        try:
            got = read_at(handle, view[done:], offset + done)
        except OSError as error:
            raise _read_error(error, file) from error
        if not got:
            problem = "the file has become shorter while it was read"
            remedy = "keep the inputs unchanged while magmerge runs"
            raise CheckpointError(problem, source=file, tensor=name, remedy=remedy)
        done += got
