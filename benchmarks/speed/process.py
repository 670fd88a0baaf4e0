"""One process to its end and what it took, with files in the page cache or out of it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[1]
CACHE = HERE / ".cache"
GB = 1e9
BLOCK = 1 << 24


class Cost(NamedTuple):
    """What a process took: seconds of wall clock and of all its threads, bytes at its peak."""

    wall: float
    cpu: float
    memory: float


def run(command: list[str], own: Mapping[str, str] | None = None) -> Cost:
    """One process to its end, with the output removed before, and `own` in its environment. The
    program that calls this stays small, for a process begins with the peak of the one that it was
    made by.
    """
    shutil.rmtree(CACHE / "out", ignore_errors=True)
    # What earlier runs wrote is on the disk, and not on its way there meanwhile.
    os.sync()
    log, whole = CACHE / "log.txt", {**os.environ, **(own or {})}
    # Each program takes the threads that it takes by itself.
    whole.pop("OMP_NUM_THREADS", None)
    with log.open("wb") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=HERE.parent, env=whole
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def middle(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def cool(files: Iterable[Path]) -> None:
    """Have the system forget what it holds of the files."""
    os.sync()
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def warm(files: Iterable[Path]) -> None:
    """Read the files once, so that the system holds them as far as it has memory."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(BLOCK):
                pass
