"""A kill at any change of the disk: no half result, and the same bytes from a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import Kills
from tests.faults.program import KILLED, Program, compiler
from tests.quick import QUICK

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler, or no LD_PRELOAD")
SOME = ("merge", "merge, one file", "extract", "merge of adapters", "convert a model")


OTHERS = ("suite", "export")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    pytest.importorskip("gguf")
    made = Kills(tmp_path_factory.mktemp("others"), list(OTHERS))
    yield made
    made.program.close()


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    made = Kills(tmp_path_factory.mktemp("kills"), list(SOME))
    yield made
    made.program.close()


@pytest.mark.parametrize("name", SOME)
def test_after_a_kill_the_same_bytes_are_made(kills: Kills, name: str) -> None:
    count = kills.changes[name]
    for at in [count // 3, count] if QUICK else range(1, count + 1, 3):
        assert kills.kill(name, max(1, at)) == "", at


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_merge_stands_a_kill_too(others: Kills, name: str) -> None:
    for at in range(1, others.changes[name] + 1):
        assert others.kill(name, at) == "", at


@pytest.mark.parametrize("name", ["extract", "merge of adapters"])
def test_modules_of_an_adapter_are_not_made_again(kills: Kills, name: str) -> None:
    case, place = kills.cases[name], kills.place()
    # The last change before the spool is removed: all modules are in it.
    log = kills.folder / "log"
    kills.program.call(case.verb, case.at(place), below=place, log=log)
    lines = log.read_text().splitlines()
    log.unlink()
    last = max(at for at, line in enumerate(lines, 1) if ".spool" in line and "write" in line)
    other = kills.place()
    call = case.at(other, resume=True)
    ending = kills.program.call(case.verb, call, below=other, fault="kill", at=last + 1)
    assert ending.code == KILLED
    kept = next(other.glob(".*/.spool")).stat().st_size
    assert kept > 0
    whole = kills.program.call(case.verb, case.at(kills.place()), below=kills.folder)
    gone_on = kills.program.call(case.verb, call, below=other)
    assert gone_on.code == 0
    assert gone_on.changes < whole.changes


class Disk:
    """What would be there after a power loss, by the log of a run: only what was synced."""

    def __init__(self) -> None:
        self.unsynced: set[str] = set()
        self.names: set[str] = set()

    def lacks(self, path: str) -> list[str]:
        """What is below a path whose bytes, or whose names, are not on the disk."""
        return sorted(
            p for p in self.unsynced | self.names if p == path or p.startswith(path + "/")
        )

    def see(self, what: str, first: str, second: str) -> None:
        """One line of the log."""
        if what in ("create", "write"):
            self.unsynced.add(first)
        if what in ("create", "mkdir"):
            self.names.add(first)
        if what == "fsync":
            self.unsynced.discard(first)
            self.names = {name for name in self.names if name.rpartition("/")[0] != first}
        if what == "unlink":
            self.unsynced.discard(first)
            self.names.discard(first)
        if what == "rename":
            self.unsynced = {p.replace(first, second, 1) for p in self.unsynced}
            self.names = {p.replace(first, second, 1) for p in self.names} | {second}
        if what == "exchange":
            self.names |= {first, second}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("replaced", [False, True])
def test_all_is_on_the_disk_before_it_gets_its_name(
    kills: Kills, name: str, replaced: bool
) -> None:
    """File, its folder, the rename, the folder of that: so that a power loss leaves no half."""
    check_synced(kills, name, replaced)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("replaced", [False, True])
def test_so_is_what_is_no_merge(others: Kills, name: str, replaced: bool) -> None:
    check_synced(others, name, replaced)


def check_synced(kills: Kills, name: str, replaced: bool) -> None:
    """That nothing gets its name before it is on the disk, nor is an old result gone before."""
    case, place, log = kills.cases[name], kills.place(), kills.folder / "log"
    if replaced:
        kills.program.call(case.verb, case.at(place), below=place)
    call = case.at(place, overwrite=replaced)
    assert kills.program.call(case.verb, call, below=place, log=log).code == 0
    disk, out = Disk(), str(place / case.out)
    for line in log.read_text().splitlines():
        what, first, second = line.split("\t")
        named = what in ("rename", "exchange") and second == out
        if named:
            staged = [path for path in disk.lacks(first) if not path.endswith("/.lock")]
            # A single file is told by its folder's sync after the rename.
            assert [p for p in staged if p in disk.unsynced or p != first] == []
        old = what == "unlink" and not second and ".magmerge-partial/" in first
        if old and replaced and out in disk.names:
            pytest.fail(f"{first} is removed before the new name is on the disk")
        disk.see(what, first, second)
    log.unlink()
    assert disk.lacks(out) == []


def test_nothing_is_staged_to_be_pushed(kills: Kills) -> None:
    """The files go as they lie there, in one commit of the hub's: nothing is left of a kill."""
    case, place = kills.cases["merge"], kills.place()
    kills.program.call(case.verb, case.at(place), below=place)
    call = {"model": str(place / case.out), "repo": "me/merge", "dry_run": True}
    ending = kills.program.call("push", call, below=place)
    assert (ending.code, ending.changes) == (0, 0), ending.message


def test_the_library_counts_what_it_should(kills: Kills, tmp_path: Path) -> None:
    program: Program = kills.program
    ending = program.call("clean", {"folder": str(tmp_path)}, below=tmp_path)
    assert (ending.code, ending.changes) == (0, 0)
