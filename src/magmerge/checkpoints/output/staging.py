"""A place beside the target where the result grows, renamed to the target when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from magmerge.checkpoints.output.ledger import FINDINGS, LEDGER, SPOOL
from magmerge.checkpoints.output.own_files import (
    LOCK,
    RECIPE,
    RECORD,
    REPORT,
    discard,
    disk_errors,
    files_in,
    is_own_record,
    lock_file,
    output_error,
)
from magmerge.checkpoints.output.target import Target
from magmerge.core.file_system import MOVES_OPEN, exchange, is_anothers, sync_folder
from magmerge.core.whole_file import write_whole

KEY = ".job"
PUBLISHING, OLD = ".publishing", "old"
"""What tells that the files of a single one's result are being moved, and where those that they
replace are meanwhile.
"""
NOTES = (KEY, LEDGER, FINDINGS, SPOOL)
"""Files that tell how far the work is."""
UNFINISHED: set[Path] = set()
"""Folders of this process's results that are not whole yet."""


class Staging:
    """The unfinished result, under a hidden name beside the target.

    A lock tells a run at work from the remains of a killed one, which are cleared away. The target
    is replaced only if it may be, also when something appears there while the run is at work. `key`
    tells one run's work from another's: with the target's `resume` what a killed run of the same
    key left of `files` is kept, and so is what this one leaves if it fails.
    """

    def __init__(self, target: Target, key: str = "", files: Collection[str] = ()) -> None:
        self.files = frozenset({*files, LOCK, *NOTES})
        self.key, self.resume, self.resumed = key, target.resume, False
        self.place, self.target, self.single = target, target.path, target.single
        self.own = target.own
        self.folder = self.target.parent / f".{self.target.name}.magmerge-partial"
        self._old = self.target.parent / f".{self.target.name}.magmerge-old"
        self._lock: int | None = None

    def __enter__(self) -> Staging:
        UNFINISHED.add(self.folder)
        try:
            with disk_errors(self.target):
                self._take()
                self.resumed = self.resume and self._read_key() == self.key
                self._clear()
                (self.folder / KEY).write_text(self.key, encoding="utf-8")
                self.place.check_free(self.own)
        except BaseException:
            self.__exit__(None)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.resume:
            self._release()
        self._abandon()
        UNFINISHED.discard(self.folder)

    def _take(self) -> None:
        """Make the folder and lock it; OutputError where another run has it, or another user."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        check_mine(self.folder)
        check_mine(self._old)
        self.folder.mkdir(exist_ok=True)
        check_mine(self.folder / LOCK)
        self._lock = lock_file(self.folder / LOCK, self.target, moves=True)

    @classmethod
    def put_right(cls, output: Path, *, single: bool) -> None:
        """Finish or take back what a killed run was publishing, and remove what it left.

        OutputError where another run is at work there.
        """
        staging = cls(Target(output, single, output.name, overwrite=True))
        with disk_errors(output):
            staging._take()
            staging._clear()
            staging._abandon()

    def _is_kept(self, path: Path) -> bool:
        """Whether this is a file of this run's own names, or a folder of such, and no link."""
        own = path.relative_to(self.folder).as_posix()
        inner = any(file.startswith(f"{own}/") for file in self.files)
        real = path.is_dir() if inner else path.is_file() and own in self.files
        return real and not path.is_symlink()

    def _read_key(self) -> str | None:
        try:
            return (self.folder / KEY).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def publish(self, siblings: Iterable[str] = ()) -> None:
        """Give the finished files their final names: first `siblings` of a single file, then it."""
        for name in NOTES:
            (self.folder / name).unlink(missing_ok=True)
        self.own |= files_in(self.folder)
        # A folder may have come to stand where a file should go, or the other way round.
        if self.target.exists() and self.target.is_dir() == self.single:
            problem = "something else was put there while magmerge was at work"
            raise output_error(self.target, problem, "move it away, or choose another output")
        self.place.check_free(self.own)
        if self.single:
            self.place.check_siblings(siblings)
            self._publish_file(list(siblings))
            self._abandon()
            return
        # The lock moves with the folder, so that no other run takes this one's place meanwhile.
        if not MOVES_OPEN:
            self._release()
        try:
            if self.target.exists():
                self._replace()
            else:
                os.rename(self.folder, self.target)
                self._confirm()
        finally:
            (self.target / LOCK).unlink(missing_ok=True)
        self._release()

    def _confirm(self) -> None:
        """See the target's name to the disk; OutputError where that fails, and the result stands
        there all the same.
        """
        try:
            sync_folder(self.target.parent)
        except OSError as error:
            problem = f"it is whole, but its name may not be on the disk yet: {error.strerror}"
            remedy = "check the disk, and keep the inputs until magmerge verify finds it sound"
            raise output_error(self.target, problem, remedy) from error

    def _publish_file(self, siblings: list[str]) -> None:
        """Put a single file in place, and `siblings` beside it.

        The file's own rename is what counts: before it no new sibling is there, and after it no old
        one, so that no record ever lies beside another model than its own. What is killed between
        is finished, or taken back, by the next run.
        """
        old, beside = self.folder / OLD, self.target.parent
        old.mkdir()
        write_whole(self.folder / PUBLISHING, "")
        for name in sorted({*siblings, *self._retired()}):
            if (beside / name).exists():
                os.replace(beside / name, old / name)
        # The new name first: else a power loss may leave neither.
        sync_folder(old)
        sync_folder(beside)
        os.replace(self.folder / self.target.name, self.target)
        self._confirm()
        self._put_siblings(self.folder, siblings)

    def _put_siblings(self, place: Path, names: Iterable[str]) -> None:
        """Move files from `place` beside the target, where nothing else came to lie."""
        for name in names:
            if (place / name).is_file() and not os.path.lexists(self.target.parent / name):
                os.replace(place / name, self.target.parent / name)
        sync_folder(self.target.parent)

    def _settle(self) -> None:
        """Finish what a killed run was publishing, or take it back where its file is not there."""
        marker, old = self.folder / PUBLISHING, self.folder / OLD
        if not (self.single and marker.is_file()):
            return
        beside = {self.place.named(name) for name in (RECORD, RECIPE, REPORT)}
        done = not (self.folder / self.target.name).exists()
        self._put_siblings(self.folder if done else old, beside)

    def _retired(self) -> list[str]:
        """What a result that is replaced may have beside it."""
        if not self.place.overwrite or not is_own_record(self.place.record):
            return []
        return [self.place.named(name) for name in (RECORD, RECIPE, REPORT)]

    def _replace(self) -> None:
        """Exchange the folders in one step where the system can, else in two."""
        old = self.folder
        if not exchange(self.folder, self.target):
            os.rename(self.target, self._old)
            os.rename(self.folder, self.target)
            old = self._old
        # Nothing of the old result goes before the new one is known to stand there.
        self._confirm()
        discard(old, self.own, self.target)

    def _abandon(self) -> None:
        """Remove what is unfinished, while the lock is still held."""
        if self._lock is not None:
            self._settle()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self) -> None:
        """Remove what a killed run left; bring back an output that it had moved aside."""
        self._settle()
        for place, folders, names in os.walk(self.folder):
            for entry in [Path(place) / name for name in (*folders, *names)]:
                if entry == self.folder / LOCK or (self.resumed and self._is_kept(entry)):
                    continue
                plain = entry.is_dir() and not entry.is_symlink()
                shutil.rmtree(entry) if plain else entry.unlink()
            folders[:] = [name for name in folders if (Path(place) / name).is_dir()]
        if self._old.is_dir():
            if self.target.exists():
                discard(self._old, self.own | files_in(self.target), self.target)
            else:
                os.rename(self._old, self.target)


def check_mine(place: Path) -> None:
    """OutputError where a link, or another user's file, stands where magmerge would work."""
    if place.is_symlink():
        raise output_error(place, "a link stands where magmerge would work", "remove that link")
    if place.exists() and is_anothers(place.stat()):
        problem = "it is another user's, and stands where magmerge would work"
        raise output_error(place, problem, "have it removed, or choose another output")
