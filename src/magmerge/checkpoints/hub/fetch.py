"""From a model's id on the hub to its files in the hub's cache: only those that are needed."""

from __future__ import annotations

import inspect
import shutil
import sys
import threading
from collections.abc import Callable
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
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import CheckpointError
from magmerge.core.machine import Machine
from magmerge.core.model_strings import Part

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
    files = {
        sibling.rfilename: Remote(sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in told.siblings or ()
        if _is_inside(sibling.rfilename)
    }
    found = Listing(part._replace(revision=told.sha), files)
    remember(found)
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
    with hub_faults(part):
        if part != pinned:
            # By the revision's own name once, so that the cache knows that without a network.
            _fetch_one(part, min(lost, key=lambda name: found.files[name].size), _Bar)
        with ThreadPoolExecutor(1 if count.bar is None else AT_ONCE) as pool:
            try:
                list(pool.map(lambda name: _fetch_one(pinned, name, count.bar), lost))
            except BaseException:
                count.stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    count.finish()


def _fetch_one(part: Part, name: str, bar: type[_Bar] | None) -> None:
    download = hub_library().hf_hub_download
    # Older libraries draw their own bars.
    drawn = bar is not None and "tqdm_class" in inspect.signature(download).parameters
    own = {"tqdm_class": bar} if drawn else {}
    download(part.place, name, revision=part.revision, endpoint=endpoint(), **own)


class _Bar:
    """What the hub's library takes for a bar of one file."""

    total: int | None = None
    add: Callable[[float], None] | None = None

    def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
        self.update(initial)

    def update(self, count: float | None = 1) -> None:
        if self.add is not None:
            self.add(count or 0)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "update_transfer":
            raise AttributeError(name)
        return lambda *_, **__: None


class _Count:
    """The bytes that have come of several files, for `progress`; without it the hub's library draws
    its bars on a terminal, and a log gets a line.
    """

    def __init__(self, name: str, total: int, machine: Machine | None) -> None:
        progress = None if machine is None else machine.progress
        self._label, self._total, self._progress = f"fetching {name} (MB)", total, progress
        self._done, self._lock, self.stopped = 0, threading.Lock(), threading.Event()
        self.bar: type[_Bar] | None = None
        if progress is not None:
            self.bar = type("_OwnBar", (_Bar,), {"add": staticmethod(self._add)})
        elif not sys.stderr.isatty():
            sys.stderr.write(f"fetching {name}: {spoken_size(total)}\n")

    def _add(self, count: float) -> None:
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
        if self._progress is not None:
            self._progress(self._label, done // MEGABYTE, max(1, self._total // MEGABYTE))


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
