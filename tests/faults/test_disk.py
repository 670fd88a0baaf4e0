"""Faults from below: one message with a true remedy, nothing lost, nothing half-way."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator

import pytest

from tests.faults.kills import Kills, contents
from tests.faults.program import Ending, compiler
from tests.quick import QUICK, quick_ones

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler, or no LD_PRELOAD")
SOME = ("merge", "merge, one file", "extract", "calibrate", "several documents")
NAMES = quick_ones(SOME, lambda name: name in SOME[:3])


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    made = Kills(tmp_path_factory.mktemp("disk"), list(SOME))
    yield made
    made.program.close()


def places(count: int, few: int, seed: int) -> list[int]:
    """The first and the last of so many, and some between."""
    few = 1 if QUICK else few
    between = random.Random(seed).sample(range(1, count + 1), min(few, count))
    return sorted({1, count, *between})


def check_told(ending: Ending, *words: str) -> None:
    """One message with a remedy, an error of magmerge's, and no traceback."""
    assert ending.code == 2, ending.message
    assert "Traceback" not in ending.message
    assert "remedy: " in ending.message
    assert any(word in ending.message for word in words), ending.message


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_told_and_nothing_is_left(kills: Kills, name: str) -> None:
    case = kills.cases[name]
    for at in places(kills.changes[name], 4, 1):
        place = kills.place()
        ending = kills.program.call(case.verb, case.at(place), below=place, fault="enospc", at=at)
        if ending.code == 0:  # only names were still to be changed
            assert contents(place) == kills.whole[name]
            continue
        check_told(ending, "no space left on the disk")
        assert contents(place) == {}, at


@pytest.mark.parametrize("name", SOME[:2])
def test_a_full_disk_leaves_the_old_result(kills: Kills, name: str) -> None:
    case, place = kills.cases[name], kills.place()
    assert kills.program.call(case.verb, case.at(place), below=place).code == 0
    for at in places(kills.changes[name], 3, 2):
        call = case.at(place, overwrite=True)
        ending = kills.program.call(case.verb, call, below=place, fault="enospc", at=at)
        assert ending.code in (0, 2), ending.message
        assert contents(place) == kills.whole[name], at


@pytest.mark.parametrize("name", SOME[:2])
def test_a_disk_that_cannot_keep_what_was_written_is_told(kills: Kills, name: str) -> None:
    case, place = kills.cases[name], kills.place()
    count = kills.program.call(case.verb, case.at(place), below=place).syncs
    for at in places(count, 3, 3):
        other = kills.place()
        ending = kills.program.call(
            case.verb, case.at(other), below=other, fault="eio-fsync", at=at
        )
        check_told(ending, "Input/output error")
        weights = [path for path in contents(other) if path.endswith(".safetensors")]
        # After the rename the result is whole, and the message speaks of the folder alone.
        assert not weights or contents(other) == kills.whole[name]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_read_is_told(kills: Kills, name: str) -> None:
    case, inputs = kills.cases[name], kills.folder / "inputs"
    count = kills.program.call(case.verb, case.at(kills.place()), below=inputs).reads
    assert count > 1
    for at in places(count, 5, 4):
        place = kills.place()
        ending = kills.program.call(
            case.verb, case.at(place), below=inputs, fault="eio-read", at=at
        )
        if ending.code == 0:  # such as licences, which are looked for and not needed
            continue
        check_told(ending, "Input/output error")
        assert contents(place) == {}


@pytest.mark.parametrize("fault", [("short-read", 997), ("slow-read", 300)])
def test_short_and_slow_reads_give_the_same_bytes(kills: Kills, fault: tuple[str, int]) -> None:
    inputs = kills.folder / "inputs"
    for name in ("merge", "extract"):
        case, place = kills.cases[name], kills.place()
        ending = kills.program.call(
            case.verb, case.at(place), below=inputs, fault=fault[0], at=fault[1]
        )
        assert ending.code == 0, ending.message
        assert contents(place) == kills.whole[name]


@pytest.mark.parametrize("name", ["merge", "extract"])
def test_a_source_that_changes_meanwhile_is_told(kills: Kills, name: str) -> None:
    case, inputs, whole = kills.cases[name], kills.folder / "inputs", kills.whole[name]
    count = kills.program.call(case.verb, case.at(kills.place()), below=inputs).reads
    for at in places(count, 4, 5):
        saved = kills.folder / f"saved-{name}-{at}"
        shutil.copytree(inputs, saved)
        place = kills.place()
        ending = kills.program.call(case.verb, case.at(place), below=inputs, fault="change", at=at)
        if ending.code == 0:  # a text that was read whole before it changed
            assert contents(place).keys() == whole.keys()
        else:
            check_told(ending, "changed", "shorter", "not a sound", "config")
            assert contents(place) == {}
        shutil.rmtree(inputs)
        shutil.copytree(saved, inputs)
