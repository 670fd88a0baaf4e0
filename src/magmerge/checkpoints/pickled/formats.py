"""From a file to the records in it, whatever torch's format it is in."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.checkpoints.pickled.budget import Budget
from magmerge.checkpoints.pickled.legacy import MAGIC, Legacy, no_storages
from magmerge.checkpoints.pickled.machine import Machine
from magmerge.checkpoints.pickled.refusals import DamagedError, RefusedError
from magmerge.checkpoints.pickled.zipped import LOCAL_MAGIC, Archive

TAR, TAR_AT = b"ustar", 257


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, and how often it names each class and function."""

    held: Any
    names: Counter[str]


def read(file: Path) -> Content:
    """The records of a zip file, of a file in the legacy format, or of a plain pickle.

    RefusedError for anything else, and for what cannot be read without running code.
    """
    size = file.stat().st_size
    if not size:
        raise DamagedError("it is empty")
    with file.open("rb") as stream:
        head = stream.read(TAR_AT + len(TAR))
        if head.startswith(LOCAL_MAGIC):
            archive = Archive(file, stream, size)
            pickle = archive.pickle()
            budget = Budget(len(pickle))
            return Content(archive.read(pickle, budget), budget.names)
        if head[TAR_AT:] == TAR:
            raise RefusedError(
                "it is a tar file, as torch wrote them before 2017",
                "load it with a torch older than 2.0 and save its state_dict() with torch.save",
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            budget = Budget(size)
            held = Machine(mapped, budget, no_storages).load()
            if isinstance(held, int) and held == MAGIC:
                held = Legacy(file, size).read(mapped, budget)
            return Content(held, budget.names)
