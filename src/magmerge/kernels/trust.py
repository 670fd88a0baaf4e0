"""Whether a file could have been written by another user."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def writers(path: Path) -> str | None:
    """Why somebody else than this user and root could have put a file or folder there, or in its
    place; None where nobody could. `path` is there and holds no links (`Path.resolve`).
    """
    for place in (path, *path.parents):
        state = place.lstat()
        if state.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        # In a folder like /tmp nobody may replace what is another's.
        if place != path and state.st_mode & stat.S_ISVTX:
            continue
        if state.st_mode & stat.S_IWOTH:
            return f"{place} may be written to by everybody"
        if state.st_mode & stat.S_IWGRP and not _is_private(state.st_gid):
            return f"{place} may be written to by a group"
    return None


def _is_private(group: int) -> bool:
    """Whether nobody but this user is in a group, as in those that many systems make for each."""
    import grp
    import pwd

    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name == user and set(entry.gr_mem) <= {user}
