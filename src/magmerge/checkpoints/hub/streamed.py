"""safetensors files on the hub as a checkpoint, read by ranges of bytes where they lie."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, cast

from magmerge.checkpoints.hub.blocks import Blocks
from magmerge.checkpoints.hub.cache import Listing, folder_of, missing, shards
from magmerge.checkpoints.hub.choice import Choice, adapter_files, needed_files
from magmerge.checkpoints.hub.fetch import fetched, fetched_texts, listing
from magmerge.checkpoints.hub.remote_file import RemoteFile
from magmerge.checkpoints.loader import open_stored, with_notes
from magmerge.checkpoints.safetensors import (
    COMPLETE,
    SafetensorsCheckpoint,
    check_against_index,
    read_header,
    read_index_map,
)
from magmerge.core import dtypes
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import CheckpointError
from magmerge.core.lazy import load
from magmerge.core.machine import hub_manner
from magmerge.core.model_strings import Part
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

FIRST = 1 << 18
"""Bytes that are asked for at once where a header begins."""
LONGEST = 100_000_000
"""Bytes of a header, at most, as safetensors has it."""
Headers = list[tuple[TensorSpec, Any]]


class HubFile(PosixPath):
    """Where a file of the hub would be in its cache; its digest is what the hub tells of it."""

    sha256: str | None = None

    def is_file(self, **how: Any) -> bool:
        """It is on the hub; of a path that is made of it, whether it is here."""
        return self.sha256 is not None or super().is_file(**how)


class StreamedCheckpoint(SafetensorsCheckpoint):
    """Tensors of safetensors files, of which those that the cache has not are read on the hub."""

    def __init__(self, found: Listing, names: tuple[str, ...], source: str, folder: Path) -> None:
        self._blocks: dict[Path, Blocks] = {}
        home, files = folder_of(found.part), []
        for name in names:
            file, told = home / name, found.files[name]
            if not file.is_file():
                file = HubFile(file)
                file.sha256 = told.sha256
                self._blocks[file] = Blocks(RemoteFile(found.part, name, told.size))
            files.append(file)
        super().__init__(files, source, folder)

    def _header(self, file: Path) -> Headers:
        blocks = self._blocks.get(file)
        if blocks is None:
            return super()._header(file)
        remote = blocks.remote
        return [
            (spec, place._replace(file=file))
            for spec, place in _remote_header(remote.part, remote.name, remote.size)
        ]

    def _fill(self, view: memoryview, file: Path, offset: int, name: str) -> None:
        if file in self._blocks:
            self._blocks[file].fill(view, offset)
        else:
            super()._fill(view, file, offset, name)

    def read_strewn(self, name: str, spans: Iterable[tuple[int, int]], out: Bytes) -> None:
        """Of files that are read on the hub too, by blocks of them."""
        if self.file_of(name) not in self._blocks:
            super().read_strewn(name, spans, out)
            return
        width, done = dtypes.width(self.specs[name].dtype), 0
        for start, stop in spans:
            size = (stop - start) * width
            self.read_bytes(name, start, stop, out[done : done + size])
            done += size

    def give_back(self, name: str, start: int, stop: int) -> None:
        """Of files that are read on the hub the system keeps nothing."""
        if self.file_of(name) not in self._blocks:
            super().give_back(name, start, stop)


def open_streamed(part: Part, weights: str | None = None) -> Checkpoint:
    """A model of the hub, its tensors as they are stored. What is in the cache is read there, and
    what is no safetensors file, or an adapter's, is fetched; where only headers are to be looked
    at, CheckpointError for weights of other formats.
    """
    found = listing(part)
    lost = missing(found) if found.files else {}
    if not lost:
        return named(open_stored(folder_of(found.part), weights), found.part, found.notes)
    folder = fetched_texts(found.part).folder
    choice, source = needed_files(found.files, str(found.part)), str(found.part)
    names = (*choice.weights, *shards(choice, found))
    if not _streams(choice, names, found):
        return _fetched_whole(found, names, weights)
    places = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    parts = {
        place: _in_folder(found, choice, place, f"{source}/{place}".rstrip("/")) for place in places
    }
    notes = (*found.notes, *_notes(found, names))
    if places != [""]:
        opened: Checkpoint = load("magmerge.checkpoints.pipeline_folder:opened")(folder, parts)
        return named(opened, found.part, notes)
    return named(parts[""], found.part, notes)


def named(checkpoint: Any, part: Part, notes: tuple[str, ...]) -> Checkpoint:
    """A checkpoint of the hub under its name there, whatever folder it lies in."""
    checkpoint.source = str(part)
    return with_notes(checkpoint, notes)


def _in_folder(found: Listing, choice: Choice, place: str, source: str) -> Checkpoint:
    """The checkpoint in one folder of the repository."""
    start = f"{place}/" if place else ""
    folder = folder_of(found.part) / place
    inside = [name for name in (*choice.weights, *shards(choice, found))
              if name.rpartition("/")[0] == place]  # fmt: skip
    opened: Any = StreamedCheckpoint(found, tuple(inside), source, folder)
    opened.averaged = False
    for index in choice.indices:
        if index.rpartition("/")[0] == place:
            listed = read_index_map(folder / index.removeprefix(start))
            opened.notes = (*opened.notes, *check_against_index(opened, listed))
    return cast("Checkpoint", opened)


def _streams(choice: Choice, names: tuple[str, ...], found: Listing) -> bool:
    """Whether all its weights are whole models' safetensors files that the hub has a digest of."""
    large = all(name.endswith(".safetensors") and found.files[name].sha256 for name in names)
    return large and not adapter_files(choice.texts)


def _fetched_whole(found: Listing, names: tuple[str, ...], weights: str | None) -> Checkpoint:
    lost = [name for name in names if not (folder_of(found.part) / name).is_file()]
    size = sum(found.files[name].size for name in lost)
    other = [name for name in lost if not name.endswith(".safetensors")]
    if other and hub_manner() == "headers":
        raise CheckpointError(
            f"{other[0]} has no header that can be read without it ({spoken_size(size)} in all)",
            source=found.part,
            remedy=f"fetch it first: magmerge inspect {found.part}",
        )
    snapshot = fetched(found.part)
    notes = found.notes
    if other:
        notes = (*notes, f"{found.part} is fetched whole: {other[0]} is not read by ranges")
    return named(open_stored(snapshot.folder, weights), snapshot.part, notes)


def _notes(found: Listing, names: tuple[str, ...]) -> tuple[str, ...]:
    lost = [name for name in names if not (folder_of(found.part) / name).is_file()]
    if not lost:
        return ()
    size = spoken_size(sum(found.files[name].size for name in lost))
    files = f"{len(lost)} file{'s' if len(lost) > 1 else ''}"
    if hub_manner() == "headers":
        return (f"{found.part}: {size} in {files} would be fetched from the hub",)
    return (f"{found.part}: {size} in {files} are read on the hub; digests are those it tells",)


@lru_cache(256)
def _remote_header(part: Part, name: str, size: int) -> Headers:
    """The tensors that a file declares. safetensors' own reader checks it, in an empty file of the
    same size that begins with its header.
    """
    remote = RemoteFile(part, name, size)
    begin = remote.read(0, min(size, FIRST))
    length = 8 + int.from_bytes(begin[:8], "little")
    if len(begin) < 8 or length > min(size, LONGEST):
        raise CheckpointError(
            f"{name} is not a sound safetensors file: it says {length - 8} bytes of its header",
            source=part,
            remedy=COMPLETE,
        )
    begin = begin[:length] + remote.read(len(begin), length)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as stream:
        stream.write(begin)
        stream.flush()
        os.truncate(stream.name, size)
        try:
            return read_header(Path(stream.name)).tensors
        except CheckpointError as error:
            raise CheckpointError(
                error.problem, source=f"{part}/{name}", tensor=error.tensor, remedy=error.remedy
            ) from error
