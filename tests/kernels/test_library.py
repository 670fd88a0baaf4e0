"""The library: built at its first use, chosen by level, refused where others may have written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from magmerge.core.errors import MagmergeError, MagmergeWarning, ParameterError
from magmerge.kernels import compile as compiling
from magmerge.kernels import library
from magmerge.kernels.library_report import library_lines

LEVELS = [*compiling.LEVELS.get(compiling.this_machine().processor, ())]
pytestmark = pytest.mark.skipif(
    not LEVELS or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="no kernels for this processor, or no compiler",
)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process of a source checkout, with a cache of its own."""
    monkeypatch.setattr(library, "_outcomes", {})
    monkeypatch.setattr(library, "_told", set())
    monkeypatch.setattr(library, "HERE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.delenv("CC", raising=False)


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "magmerge" / "kernels").iterdir())


def reason() -> str:
    """Why there is no library, as the one warning says it too."""
    with pytest.warns(MagmergeWarning, match="merging by torch alone") as caught:
        assert library.load() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is None
    state = library.outcome()
    assert len(caught) == 1
    assert state.reason in str(caught[0].message)
    assert library_lines() == ["kernels: none, merges run on torch", f"reason: {state.reason}"]
    return state.reason


def test_the_first_use_builds_and_the_second_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library.load()
    assert first is not None
    assert built(tmp_path) == [first.path]
    assert first.call("version")() == library.ABI
    assert first is library.load()
    state = first.path.stat()
    monkeypatch.setattr(library, "_outcomes", {})
    again = library.load()
    assert again is not None
    assert (again.path, again.path.stat().st_mtime_ns) == (first.path, state.st_mtime_ns)
    assert library_lines()[0] == f"kernels: {again.level}"


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_chosen(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    highest = library.load()
    assert highest is not None
    if LEVELS.index(level) > LEVELS.index(highest.level):
        pytest.skip("this processor does not have it")
    monkeypatch.setenv(library.VARIABLE, level)
    chosen = library.load()
    assert chosen is not None
    assert chosen.level == level
    assert chosen.call("version").__name__ == f"magmerge_{level}_version"


def test_off_is_no_library_and_no_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.VARIABLE, "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is None
    assert not (tmp_path / "cache").exists()
    assert library_lines()[1] == "reason: MAGMERGE_KERNELS is off"


@pytest.mark.parametrize(("value", "remedy"), [("atuo", "auto"), ("AVX2", "avx2"), ("1", "known")])
def test_a_wrong_value_gets_a_suggestion(
    value: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, value)
    with pytest.raises(ParameterError, match=remedy):
        library.load()


def test_a_level_of_another_processor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = next(one for one in ("neon", "sse2") if one not in LEVELS)
    monkeypatch.setenv(library.VARIABLE, foreign)
    with pytest.raises(ParameterError, match="this processor does not have"):
        library.load()


def test_a_level_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, LEVELS[0])
    monkeypatch.setenv("CC", "nonesuch")
    with pytest.raises(MagmergeError, match="no compiler nonesuch"):
        library.load()


def test_a_broken_compiler_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho 'error: not today' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert reason() == "broken failed: error: not today"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/magmerge")
    assert "No such file or directory" in reason()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "user_cache", lambda: None)
    assert reason() == "there is no home folder to compile into"


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 65534, -1)


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o777), give_away])
@pytest.mark.parametrize("name", ["", "magmerge", "magmerge/kernels", "library"])
def test_what_others_may_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], name: str
) -> None:
    first = library.load()
    assert first is not None
    part = first.path if name == "library" else tmp_path / "cache" / name
    spoil(part)
    monkeypatch.setattr(library, "_outcomes", {})
    assert f"{part} " in reason()


def test_nothing_is_built_where_others_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "magmerge" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert "may be written to by everybody" in reason()
    assert not list(folder.iterdir())


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library.load()
    assert first is not None
    foreign = tmp_path / "foreign.so"
    first.path.rename(foreign)
    foreign.chmod(0o666)
    first.path.symlink_to(foreign)
    monkeypatch.setattr(library, "_outcomes", {})
    assert f"{foreign} may be written to by everybody" in reason()


def test_a_spoilt_library_is_no_end_of_the_merge(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "magmerge" / "kernels"
    folder.mkdir(parents=True)
    target = compiling.this_machine()
    ending = Path(target.name).suffix
    spoilt = folder / f"{compiling.find_compiler().key(target)}{ending}"
    spoilt.write_bytes(b"not a library")
    spoilt.chmod(0o644)
    assert f"{spoilt} cannot be loaded" in reason()


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    assert "of another version" in reason()


def test_the_packages_own_library_goes_first_while_it_is_of_these_sources(tmp_path: Path) -> None:
    target = compiling.this_machine()
    library.HERE.mkdir()
    (library.HERE / f"kernels.{target.processor}.0123456789abcdef.so").write_text(
        "of other sources"
    )
    compiling.build_library(library.HERE / target.name, compiling.find_compiler(), target)
    own = library.load()
    assert own is not None
    assert own.path == library.HERE / target.name
    assert not (tmp_path / "cache").exists()


def test_where_the_packages_own_cannot_be_loaded_one_is_built(tmp_path: Path) -> None:
    """As on an older system than wheels are for."""
    library.HERE.mkdir()
    (library.HERE / compiling.this_machine().name).write_text("for another system")
    other = library.load()
    assert other is not None
    assert built(tmp_path) == [other.path]


def test_threads_get_the_same_library() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: library.load(), range(8)))
    assert len(set(map(id, found))) == 1


def test_two_processes_at_once_build_one_library(tmp_path: Path) -> None:
    code = "from magmerge.kernels import library as l, compile as c; from pathlib import Path\n"
    code += f"l.HERE = Path({str(tmp_path)!r}); print(l.load().call('version')())"
    words = [sys.executable, "-c", code]
    pair = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in pair] == [str(library.ABI)] * 2
    assert len(built(tmp_path)) == 1


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    code = "import magmerge.kernels.library, magmerge.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", [["--version", "-v"], ["-v", "--version"]])
def test_the_version_tells_of_the_library(tmp_path: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "magmerge", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines()[1:])
    assert lines["kernels"] in LEVELS
    assert Path(lines["library"]).is_file()
    assert lines["compiler"].split()[0] in ("gcc", "clang")
    assert not done.stderr
