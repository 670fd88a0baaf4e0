"""From a model's id on the hub to its files in the hub's cache: only those that are needed."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from magmerge.checkpoints.hub.cache import (
    Listing,
    Remote,
    cached_listing,
    folder_of,
    incomplete,
    known_listing,
    name_commit,
    remember,
    shards,
)
from magmerge.checkpoints.hub.choice import needed_files, needed_texts
from magmerge.checkpoints.hub.hub_faults import (
    UnreachableError,
    endpoint,
    hub_faults,
    hub_library,
    is_offline,
)
from magmerge.checkpoints.hub.ranges import SilentBar, fetch_by_ranges
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import CheckpointError
from magmerge.core.machine import Machine
from magmerge.core.model_strings import COMMIT, Part

AT_ONCE = 4
"""Files that are fetched side by side."""
MEGABYTE = 1_000_000
RESERVE = 1 << 28
"""Bytes left free on the disk of the cache."""


class Snapshot(NamedTuple):
    """A model's folder in the cache, at a commit."""

    part: Part
    folder: Path
    notes: tuple[str, ...] = ()


def listing(part: Part) -> Listing:
    """The commit of a model's revision and its files. What was listed once is so for ever; offline,
    or where the hub cannot be reached, what the cache knows. CheckpointError, with the remedy.
    """
    known = known_listing(part)
    if known is not None:
        return known
    if is_offline():
        return cached_listing(part)
    try:
        with hub_faults(part):
            api = hub_library().HfApi(endpoint=endpoint())
            told = api.model_info(part.place, revision=part.revision, files_metadata=True)
    except UnreachableError as error:
        try:
            cached = cached_listing(part)
        except CheckpointError:
            raise error from None
        note = f"the hub cannot be reached: {cached.part} is taken from its cache"
        return cached._replace(notes=(note, *cached.notes))
    if not COMMIT.fullmatch(told.sha or ""):
        raise CheckpointError(
            "what answers is no hub: it tells no commit",
            source=f"{endpoint()}/{part.place}",
            remedy="check HF_ENDPOINT",
        )
    files = {
        sibling.rfilename: Remote(sibling.size or 0, _digest(sibling))
        for sibling in told.siblings or ()
        if _is_inside(sibling.rfilename)
    }
    found = Listing(part._replace(revision=told.sha), files)
    remember(found)
    name_commit(part, found.part)
    return found


def fetched(part: Part, machine: Machine | None = None) -> Snapshot:
    """A model's files in the cache of the hub, where what is there already stays, and what was
    begun is gone on with. CheckpointError, with the remedy.
    """
    found = listing(part)
    if found.files:
        choice = needed_files(found.files, str(found.part))
        _fetch(part, found, choice.texts, machine)
        _fetch(part, found, (*choice.weights, *shards(choice, found)), machine)
    return Snapshot(found.part, folder_of(found.part), found.notes)


def fetched_texts(part: Part) -> Snapshot:
    """The same of config, tokenizer and indices alone."""
    found = listing(part)
    if found.files:
        _fetch(part, found, needed_texts(found.files), None)
    return Snapshot(found.part, folder_of(found.part), found.notes)


def _fetch(part: Part, found: Listing, names: tuple[str, ...], machine: Machine | None) -> None:
    """Files into the cache, each whole or to be gone on with."""
    folder, pinned = folder_of(found.part), found.part
    lost = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if not lost:
        return
    if is_offline():
        raise incomplete(pinned, lost)
    total = sum(found.files[name].size for name in lost)
    _check_room(pinned, total)
    count = _Count(part.place, total, machine)
    with hub_faults(part), ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            list(pool.map(lambda name: _fetch_one(found, name, count), lost))
        except BaseException:
            count.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    count.finish()


def _fetch_one(found: Listing, name: str, count: _Count) -> None:
    """One file: a large one by ranges, which can be gone on with; the hub's library cannot."""
    file = found.files[name]
    if file.sha256 is not None:
        fetch_by_ranges(found.part, name, file, count.add)
        return
    part, download = found.part, hub_library().hf_hub_download
    # Older libraries draw their own bars.
    drawn = "tqdm_class" in inspect.signature(download).parameters
    own = {"tqdm_class": count.bar} if drawn else {}
    download(part.place, name, revision=part.revision, endpoint=endpoint(), **own)


class _Count:
    """The bytes that have come of several files, for `progress`, or as lines in a log."""

    def __init__(self, name: str, total: int, machine: Machine | None) -> None:
        progress = None if machine is None else machine.progress
        self._label, self._total = f"fetching {name} (MB)", total
        self._progress = progress or _lines
        self._done, self._lock, self.stopped = 0, threading.Lock(), threading.Event()
        self.bar = type("OwnBar", (SilentBar,), {"add": staticmethod(self.add)})

    def add(self, count: float) -> None:
        """More bytes. InterruptedError once the others are to stop."""
        if self.stopped.is_set():
            raise InterruptedError
        with self._lock:
            self._done += int(count)
            self._tell(min(self._done, self._total - 1))

    def finish(self) -> None:
        """All is there."""
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        total = -(-self._total // MEGABYTE)
        self._progress(self._label, total if done == self._total else done // MEGABYTE, total)


def _lines(label: str, done: int, total: int) -> None:
    """Progress without a listener: a line for what is done; on a terminal one that is replaced."""
    if sys.stderr.isatty() and done < total:
        sys.stderr.write(f"\r{label}: {done}/{total}")
    elif done == total:
        start = "\r" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}{label}: {done}/{total}\n")


def _digest(sibling: Any) -> str | None:
    """The SHA-256 of a large file. It becomes a file's name, so it must look like one."""
    told = sibling.lfs.sha256 if sibling.lfs else None
    return told if told and re.fullmatch(r"[0-9a-f]{64}", told) else None


def _is_inside(name: str) -> bool:
    """Whether a file's name leads to no place outside of its repository's folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name.isprintable()


def _check_room(part: Part, size: int) -> None:
    """CheckpointError where the disk of the cache has no room for so many bytes."""
    place = Path(hub_library().constants.HF_HUB_CACHE).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free - RESERVE
    if size > free:
        raise CheckpointError(
            f"{spoken_size(size)} are to be fetched, and {place} has {spoken_size(max(0, free))}",
            source=part,
            remedy="free some of the disk, or set HF_HOME to a folder on another one",
        )
