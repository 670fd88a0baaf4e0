"""Who may have written a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from magmerge.kernels.trust import writers

NOBODY = 65534


def place(tmp_path: Path) -> Path:
    """A file three folders deep, which only this user may write to."""
    folder = tmp_path.resolve() / "a" / "b"
    folder.mkdir(parents=True, mode=0o755)
    for part in (folder, folder.parent):
        part.chmod(0o755)
    file = folder / "file"
    file.touch()
    file.chmod(0o644)
    return file


def test_ones_own_file_is_trusted(tmp_path: Path) -> None:
    assert writers(place(tmp_path)) is None


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o666, 0o777])
def test_what_everybody_may_write_to_is_not(tmp_path: Path, depth: int, mode: int) -> None:
    file = place(tmp_path)
    part = (file, *file.parents)[depth]
    part.chmod(mode | 0o111 * bool(depth))
    assert writers(file) == f"{part} may be written to by everybody"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_another_user_owns_is_not(tmp_path: Path, depth: int) -> None:
    file = place(tmp_path)
    part = (file, *file.parents)[depth]
    os.chown(part, NOBODY, -1)
    assert writers(file) == f"{part} belongs to another user"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_a_group_may_write_to_is_not(tmp_path: Path) -> None:
    file = place(tmp_path)
    os.chown(file.parent, -1, NOBODY)
    file.parent.chmod(0o775)
    assert writers(file) == f"{file.parent} may be written to by a group"


def test_a_group_of_this_user_alone_is_no_other(tmp_path: Path) -> None:
    grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
    user = pwd.getpwuid(os.geteuid())
    group = grp.getgrgid(user.pw_gid)
    file = place(tmp_path)
    os.chown(file.parent, -1, user.pw_gid)
    file.parent.chmod(0o775)
    alone = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    assert (writers(file) is None) == alone


def test_a_sticky_folder_above_is_trusted_and_one_that_holds_libraries_is_not(
    tmp_path: Path,
) -> None:
    file = place(tmp_path)
    file.parent.chmod(0o1777)
    assert writers(file) is None
    assert writers(file.parent) == f"{file.parent} may be written to by everybody"
