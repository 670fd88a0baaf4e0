"""Where and within what bounds a recipe is run: nothing of it decides the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from magmerge.core.dtypes import parse_size
from magmerge.core.errors import ParameterError
from magmerge.core.lazy import load

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
CPU = "cpu"
DEFAULT_MEMORY = "2GB"


Manner = Literal["whole", "ranges", "headers"]
"""How models of the hub are read: fetched whole into its cache; by ranges of bytes where they lie;
or nothing but their headers, as for a plan."""
_manner: ContextVar[Manner] = ContextVar("manner", default="whole")


def hub_manner() -> Manner:
    """How a model of the hub is to be opened."""
    return _manner.get()


@contextmanager
def hub_read(manner: Manner) -> Iterator[None]:
    """Models that are opened inside are read from the hub in this manner."""
    token = _manner.set(manner)
    try:
        yield
    finally:
        _manner.reset(token)


def shown_progress() -> Progress | None:
    """Bars of progress where a person looks on, in a notebook or at a terminal; else None."""
    if "IPython" not in sys.modules and not (sys.stderr and sys.stderr.isatty()):
        return None
    shown: Progress | None = load("magmerge.core.interactive:default_progress")()
    return shown


def user_cache() -> Path | None:
    """magmerge's folder among what a user's programs can make again, which may not be there yet;
    None for a user without a home.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(folder) if folder else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "magmerge"


@dataclass(frozen=True, slots=True)
class Machine:
    """Threads at work at once (None: one for each core that this process may use), bytes of memory
    beyond the interpreter, torch and a result that stays in memory, and the device of the
    arithmetic, whose rounding alone may differ. `offload`: a model that is run is in memory block
    by block. `hub` is how models of the hub are read. `progress` hears how far the work is. With
    `sha256` the record has the SHA-256 of the inputs' files beside their digests.
    """

    threads: int | None = None
    memory: str | int = DEFAULT_MEMORY
    device: str = CPU
    offload: bool = False
    progress: Progress | None = None
    hub: Manner = "whole"
    sha256: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise ParameterError(f"{self.threads} threads", remedy="give one thread or more")
        if self.hub not in get_args(Manner):
            told = ", ".join(get_args(Manner))
            raise ParameterError(f"models of the hub are read {self.hub!r}", remedy=f"say {told}")
        object.__setattr__(self, "memory", parse_size(self.memory))

    @property
    def count(self) -> int:
        """How many threads there are."""
        if self.threads is not None:
            return self.threads
        # Only Linux tells which cores this process may use.
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1

    @property
    def limit(self) -> int:
        """The memory in bytes."""
        assert isinstance(self.memory, int)
        return self.memory

    def counter(self, label: str, total: int) -> Callable[[object], None] | None:
        """What a run of jobs calls after each, so that `progress` hears of it."""
        progress = self.progress
        if progress is None:
            return None
        count = 0

        def done(_: object) -> None:
            nonlocal count
            count += 1
            progress(label, count, total)

        return done
