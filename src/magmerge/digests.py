"""SHA-256 of input files, remembered while a file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from magmerge.whole_file import replace_whole

REMEMBERED = 4096
"""Files that are remembered, the latest ones."""
SETTLED = 2.0
"""Seconds after its last change from which a file's time tells whether it was changed again."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class DigestMemory:
    """Digests by a file's device, inode, size and time of change.

    Kept in a small file in the user's cache folder (XDG_CACHE_HOME, or ~/.cache), so that trying
    several merges of the same models reads them for their digests once. Where it cannot be read or
    written, or is spoilt, digests are computed anew.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_path() if path is None else path
        self._known = _read(self.path)

    def digest(self, file: Path) -> str:
        """The file's digest, computed where it is not known."""
        key = stamp(file)
        known = self._known.get(key)
        if known is None:
            known = file_digest(file)
            # What changed meanwhile, or a moment ago, might change again within the same time.
            if key == stamp(file) and time.time() - file.stat().st_ctime > SETTLED:
                self._known[key] = known
        return known

    def save(self) -> None:
        """Write what is known, in one step."""
        latest = dict(list(self._known.items())[-REMEMBERED:])
        if self.path is None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(self.path, json.dumps(latest))


def default_path() -> Path | None:
    """Where digests are remembered; None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(folder) if folder else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "magmerge" / "digests.json"


def stamp(file: Path) -> str:
    """What changes when the file does: device, inode, size and times of change."""
    state = file.stat()
    times = state.st_mtime_ns, state.st_ctime_ns
    return ":".join(map(str, (state.st_dev, state.st_ino, state.st_size, *times)))


def _read(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(content, dict) and all(
        isinstance(value, str) and len(value) == 64 for value in content.values()
    )
    return content if sound else {}
