"""push(): a written result to the hub, with its card, its recipe and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from magmerge.checkpoints.hub.hub_faults import endpoint
from magmerge.checkpoints.hub.upload import check_repo, upload
from magmerge.checkpoints.output.own_files import CARD, FACTORS, RECIPE, RECORD, REPORT
from magmerge.core.errors import OutputError, no_such_model, shortened
from magmerge.core.machine import Machine
from magmerge.engine.verification import beside, record_of
from magmerge.pipeline.verify import verify


@dataclass(frozen=True, slots=True)
class Push:
    """What was sent, or would be: each file's path in the repository `repo`, with its bytes.

    `url` is the repository's address, `commit` that of the commit; None where nothing was sent.
    """

    repo: str
    url: str
    files: Mapping[str, int]
    private: bool
    commit: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def push(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    force: bool = False,
    machine: Machine | None = None,
) -> Push:
    """Send what magmerge wrote to `repo` (ORG/NAME) on the hub, made where it is not there.

    Its own files are sent: weights, config, tokenizer, card, recipe, record and report; with
    `force` all files of a folder that magmerge did not write. It is verified first. With `dry_run`
    nothing is sent, and no network is needed. OutputError, with the remedy, for a model with
    faults, without a record, or where the hub refuses.
    """
    check_repo(repo)
    place = Path(model)
    if not place.exists():
        raise no_such_model(place)
    files = _files(place, force=force)
    found = verify(str(place), machine=machine)
    if not found.sound:
        faults = [fault.text for check in found.checks for fault in check.faults]
        raise OutputError(
            f"it is not sound, and is not sent: {shortened(faults)}",
            source=place,
            remedy=f"see magmerge verify {place}",
        )
    commit = None if dry_run else upload(files, repo, private=private)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return Push(repo, f"{endpoint()}/{repo}", sizes, private, commit)


def _files(place: Path, *, force: bool) -> dict[str, Path]:
    """What is sent, by its path in the repository. OutputError without a record."""
    folder = place if place.is_dir() else place.parent
    told = record_of(place).get("files")
    if not isinstance(told, list):
        if force:
            return _all(place)
        raise OutputError(
            f"magmerge did not write it: it has no {beside(place, RECORD).name}",
            source=place,
            remedy="add --force (force=True) to send all that is there",
        )
    names = [*map(str, told), CARD, FACTORS] if place.is_dir() else [place.name]
    own = [beside(place, name).name for name in (RECORD, RECIPE, REPORT)]
    # A record may hold anything: what is elsewhere is never sent.
    paths = {name: folder / name for name in sorted({*names, *own})}
    home = folder.resolve()
    return {n: p for n, p in paths.items() if p.is_file() and home in p.resolve().parents}


def _all(place: Path) -> dict[str, Path]:
    if place.is_file():
        return {place.name: place}
    files = (file for file in sorted(place.rglob("*")) if file.is_file())
    paths = {file.relative_to(place): file for file in files}
    return {
        path.as_posix(): file
        for path, file in paths.items()
        if not any(part.startswith(".") for part in path.parts)
    }
