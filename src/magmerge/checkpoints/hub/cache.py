"""What of the hub is known without a network: its library's cache, and listings seen before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from magmerge.checkpoints.digests import default_path
from magmerge.checkpoints.hub.choice import Choice, needed_files, shards_of
from magmerge.checkpoints.hub.hub_faults import hub_library, not_cached
from magmerge.core.errors import CheckpointError
from magmerge.core.model_strings import COMMIT, Part
from magmerge.core.whole_file import replace_whole


class Remote(NamedTuple):
    """A file as the hub tells of it: its bytes, and its SHA-256 where it is a large one."""

    size: int
    sha256: str | None


class Listing(NamedTuple):
    """A model at a commit, and its files; none where only the cache tells of it."""

    part: Part
    files: Mapping[str, Remote]
    notes: tuple[str, ...] = ()


def at_hand(part: Part) -> Path | None:
    """The folder of a model that is whole in the cache, without any look at the network."""
    known = known_listing(part)
    if known is None or not known.files:
        return None
    return None if missing(known) else folder_of(known.part)


def missing(found: Listing) -> dict[str, int]:
    """What is needed of a model and is not in the cache, with sizes in bytes; shards as the index
    in the cache tells them.
    """
    choice, folder = needed_files(found.files, str(found.part)), folder_of(found.part)
    names = dict.fromkeys((*choice.texts, *choice.weights, *shards(choice, found)))
    return {name: found.files[name].size for name in names if not (folder / name).is_file()}


def shards(choice: Choice, found: Listing) -> list[str]:
    """The shards of the indices that are in the cache."""
    folder = folder_of(found.part)
    indices = [index for index in choice.indices if (folder / index).is_file()]
    every = [shards_of(i, (folder / i).read_bytes(), found.files) for i in indices]
    return [name for own in every for name in own]


def repository(part: Part) -> Path:
    """Where the hub's library keeps a model: snapshots by commit, and refs that name commits."""
    name = f"models--{part.place.replace('/', '--')}"
    return Path(hub_library().constants.HF_HUB_CACHE) / name


def folder_of(part: Part) -> Path:
    """Where the hub's library keeps a model's files at a commit."""
    return repository(part) / "snapshots" / str(part.revision)


def cached_listing(part: Part) -> Listing:
    """The same from the cache alone; CheckpointError where it has not the revision, or not all."""
    ref = repository(part) / "refs" / (part.revision or "main")
    commit = part.revision or ""
    if not COMMIT.fullmatch(commit):
        commit = ref.read_text(encoding="ascii").strip() if ref.is_file() else ""
    pinned = part._replace(revision=commit)
    if not COMMIT.fullmatch(commit) or not folder_of(pinned).is_dir():
        raise not_cached(part)
    known = known_listing(pinned)
    if known is not None:
        return known
    folder = folder_of(pinned)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    try:
        choice = needed_files(names, str(pinned))
    except CheckpointError as error:
        raise not_cached(part) from error
    lost = [
        shard
        for index in choice.indices
        for shard in _listed(folder / index)
        if not (folder / index).parent.joinpath(shard).is_file()
    ]
    if lost:
        raise incomplete(pinned, lost)
    note = (
        f"{pinned} is taken as it is in the hub's cache, where another program put it: whether its "
        "tokenizer is whole there is not known"
    )
    return Listing(pinned, {}, (note,))


def _listed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def incomplete(part: Part, lost: list[str]) -> CheckpointError:
    """That some of a model's files are not here, and the network is off."""
    return CheckpointError(
        f"{len(lost)} of its files are not in the hub's cache: {', '.join(sorted(lost)[:3])}",
        source=part,
        remedy=f"with a network: HF_HUB_OFFLINE=0 hf download {part.place} "
        f"--revision {part.revision}",
    )


def _known_place(part: Part) -> Path | None:
    """Where the listing of a commit is remembered."""
    home = default_path()
    name = f"{part.place.replace('/', '--')}--{part.revision}.json"
    return None if home is None else home.parent / "hub" / name


def known_listing(part: Part) -> Listing | None:
    """The listing of a commit that was seen before."""
    if part.revision is None or not COMMIT.fullmatch(part.revision):
        return None
    place = _known_place(part)
    return None if place is None or not place.is_file() else _read_known(part, place)


@lru_cache(64)
def _read_known(part: Part, place: Path) -> Listing | None:
    try:
        content = json.loads(place.read_bytes())
        files = {str(n): Remote(int(size), sha) for n, (size, sha) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return Listing(part, files)


def remember(found: Listing) -> None:
    """Keep the listing of a commit, where it can be kept."""
    place = _known_place(found.part)
    if place is None:
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(place, json.dumps({n: list(file) for n, file in found.files.items()}))


def name_commit(part: Part, pinned: Part) -> None:
    """Let the cache know which commit a revision is, as the hub's library writes it."""
    if part == pinned:
        return
    ref = repository(part) / "refs" / (part.revision or "main")
    # A cache that cannot be written is told by what is fetched into it.
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(ref, str(pinned.revision))
