"""Which files of a folder magmerge wrote or would write, and which are somebody's: those stay."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.output.layout import INDEX
from magmerge.core.errors import OutputError, shortened
from magmerge.core.file_system import NOFOLLOW, lock
from magmerge.core.whole_file import check_free, refused

RECORD, RECIPE, REPORT = "magmerge.json", "magmerge.yaml", "report.html"
LOCK = ".lock"
"""Of the run that writes a folder; a kill right after its rename leaves it there."""
CARD, FACTORS = "README.md", "magmerge-factors.svg"
"""The model card of a folder, and its picture."""
CARD_END = b"<!-- magmerge: "
"""What the last line of a card begins with, before the digest of all lines above it."""
LISTS = ("files", "weight_map")
"""Under which keys a record and an index tell what lies beside them."""
ADAPTER = frozenset(
    f"{part}{name}"
    for part in ("", *(f"{component}/" for component in COMPONENTS))
    for name in ("adapter_model.safetensors", "adapter_config.json")
)
"""What PEFT's folders hold, of one model and of a pipeline's."""
NOBODYS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""What a system puts into any folder that it shows."""


def check_replaceable(folder: Path, own: Collection[str]) -> None:
    """OutputError, which lists them, if `folder` holds what magmerge neither wrote nor would write.
    `own` are the files that are about to be written there.
    """
    others = foreign(folder, own)
    if others:
        problem = "it holds other things than a model that magmerge wrote, so it is never replaced"
        remedy = "choose another output, or move these away yourself"
        raise output_error(folder, f"{problem}: {shortened(others)}", remedy)


def foreign(folder: Path, own: Collection[str]) -> list[str]:
    """What `folder` holds beside `own` and what its record and index tell; links as themselves.

    Paths from the folder, sorted; that of a folder in it ends in a slash, and stands for all of it
    where nothing there is magmerge's.
    """
    named = _named(folder)
    # A report without a record beside it, a recipe that no record tells, and a card that somebody
    # wrote or changed are somebody's own.
    somebodys = {name for name in (REPORT, RECIPE, FACTORS) if name not in named}
    somebodys |= set() if is_own_card(folder / CARD) else {CARD}
    known = {*own, *named} - somebodys
    return sorted(_foreign(folder, "", known))


def discard(folder: Path, own: Collection[str], refuge: Path) -> None:
    """Remove a replaced folder; what somebody put there after the last look moves to `refuge`."""
    for path in foreign(folder, own):
        (refuge / path).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(refuge / path):
            os.rename(folder / path, refuge / path)
    if not foreign(folder, own):
        shutil.rmtree(folder, ignore_errors=True)


def files_in(folder: Path) -> frozenset[str]:
    """The paths of all files below a folder, from it."""
    return frozenset(
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder)
        for name in names
    )


def check_document(file: Path, *, overwrite: bool) -> None:
    """OutputError where a JSON file of magmerge's cannot be written: it is taken, or another's."""
    check_free(file, overwrite=overwrite)
    if os.path.isfile(file) and not is_own_record(file):
        raise not_own(file)


def not_own(file: Path) -> OutputError:
    """That a file is somebody's, and stays."""
    problem = "it is no file of magmerge's, so it is never replaced"
    return output_error(file, problem, "name another output, or move that file away yourself")


def output_error(source: Path, problem: str, remedy: str) -> OutputError:
    """That something cannot be written, and what to do about it."""
    return OutputError(problem, source=source, remedy=remedy)


@contextmanager
def disk_errors(target: Path, left: str = "") -> Iterator[None]:
    """Turns the operating system's errors into one message; `left` ends its remedies."""
    try:
        yield
    except OSError as error:
        raise refused(error, target, left) from error


def lock_file(path: Path, target: Path, *, moves: bool = False) -> int:
    """The handle of a lock that is this run's alone; OutputError where another run has it. `moves`:
    another run may publish or remove it after it is opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o600)
    mine = lock(handle)
    try:
        mine = mine and (not moves or os.fstat(handle).st_ino == os.stat(path).st_ino)
    except OSError:
        mine = False
    if not mine:
        os.close(handle)
        remedy = "wait until that run has ended, or choose another output"
        raise output_error(target, "another magmerge run is writing it now", remedy)
    return handle


def is_locked(path: Path) -> bool:
    """Whether another run has this lock; False where there is none."""
    try:
        handle = os.open(path, os.O_RDWR | NOFOLLOW)
    except OSError:
        return False
    try:
        return not lock(handle)
    finally:
        os.close(handle)


def tells(record: Path, file: str) -> bool:
    """Whether a record of magmerge's own names this file among those that it wrote."""
    files = _object(record).get("files")
    return is_own_record(record) and isinstance(files, list) and file in files


def is_own_card(file: Path) -> bool:
    """Whether a model card is magmerge's, and nobody has changed it since."""
    try:
        head, mark, digest = file.read_bytes().rpartition(CARD_END)
    except OSError:
        return False
    return bool(mark) and digest == card_end(head).removeprefix(CARD_END)


def card_end(text: bytes) -> bytes:
    """The last line of a card: by it a later run knows that nobody has changed the card."""
    return CARD_END + hashlib.sha256(text).hexdigest().encode() + b" -->\n"


def is_own_record(file: Path) -> bool:
    """Whether a JSON file is of magmerge's: its version stands in it, or in each of a list."""
    content = _json(file)
    parts = content if isinstance(content, list) and content else [content]
    return all(isinstance(part, dict) and "magmerge" in part for part in parts)


def _foreign(folder: Path, prefix: str, known: Collection[str]) -> Iterator[str]:
    for entry in os.scandir(folder):
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if any(name.startswith(f"{path}/") for name in known):
                yield from _foreign(folder / entry.name, f"{path}/", known)
            else:
                yield f"{path}/"
        elif path not in known and entry.name not in NOBODYS:
            yield path


def _named(folder: Path) -> set[str]:
    """The files that the folder's own record and index name, and these themselves."""
    record = _object(folder / RECORD)
    content = [record] if "magmerge" in record else []
    names = {RECORD, REPORT, CARD, FACTORS, LOCK} if content else set()
    if names and "modules" in record:
        names |= ADAPTER
    elif names and "files" not in record:
        # Records of before they told it.
        names.add("model.safetensors")
    indices = {file.name: _object(file) for file in folder.glob(f"*{INDEX}")}
    indices = {name: index for name, index in indices.items() if "weight_map" in index}
    names |= indices.keys()
    for listed in (entry.get(key) for entry in (*content, *indices.values()) for key in LISTS):
        files = listed.values() if isinstance(listed, dict) else listed
        if isinstance(files, Iterable):
            names |= {name for name in files if isinstance(name, str)}
    return names


def _object(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty where it is none."""
    content = _json(file)
    return content if isinstance(content, dict) else {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
