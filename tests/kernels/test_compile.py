"""From C to a library, by whatever compiler is at hand."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import os
import stat
from pathlib import Path

import pytest

from magmerge.kernels import compile as compiling
from magmerge.kernels.compile import Compiler, NoLibraryError, Target

HOST = compiling.this_machine()
pytestmark = pytest.mark.skipif(
    HOST.processor not in compiling.LEVELS, reason="no kernels for this processor"
)


def script(path: Path, text: str) -> Compiler:
    """A compiler that is a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Compiler((str(path),))


def compiler() -> Compiler:
    try:
        return compiling.find_compiler()
    except NoLibraryError as error:
        pytest.skip(str(error))


def test_a_library_has_every_level_of_the_processor(tmp_path: Path) -> None:
    out = tmp_path / HOST.name
    compiling.build_library(out, compiler(), HOST)
    handle = ctypes.CDLL(str(out))
    for level in compiling.LEVELS[HOST.processor]:
        assert getattr(handle, f"magmerge_{level}_version")() >= 1
    handle.magmerge_level.restype = ctypes.c_char_p
    assert handle.magmerge_level().decode() in compiling.LEVELS[HOST.processor]
    assert [path.name for path in tmp_path.iterdir()] == [HOST.name]


def test_a_library_is_nobody_elses_to_write_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        compiling.build_library(tmp_path / "x.so", compiler(), HOST)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.so").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo 'no such target' >&2; exit 1", "no such target"),
        ("echo note >&2; echo 'x.c:1: error: what' >&2; exit 1", "x.c:1: error: what"),
        ("exit 3", "exit code 3"),
        # It says that all is well, and writes nothing.
        ("exit 0", None),
    ],
)
def test_a_broken_compiler_leaves_what_was_there(
    tmp_path: Path, text: str, told: str | None
) -> None:
    out = tmp_path / "out" / "x.so"
    out.parent.mkdir()
    out.write_text("old")
    broken = script(tmp_path / "broken", text)
    with pytest.raises((NoLibraryError, OSError)) as error:
        compiling.build_library(out, broken, HOST)
    if told is not None:
        assert str(error.value) == f"broken failed: {told}"
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]


def test_a_compiler_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", 0.2)
    with pytest.raises(NoLibraryError, match="did not end"):
        compiling.build_library(tmp_path / "x.so", script(tmp_path / "cc", "exec sleep 60"), HOST)


def test_a_program_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("text")
    with pytest.raises(NoLibraryError, match="cannot be run"):
        compiling.build_library(tmp_path / "x.so", Compiler((str(tmp_path / "cc"),)), HOST)


def test_a_processor_without_kernels(tmp_path: Path) -> None:
    with pytest.raises(NoLibraryError, match="for the processor riscv64"):
        compiling.build_library(tmp_path / "x.so", compiler(), Target("linux", "riscv64"))


def test_the_variable_cc_goes_before_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = script(tmp_path / "mine", "exit 1")
    monkeypatch.setenv("CC", f"{own.command[0]} -pipe")
    assert compiling.find_compiler().command == (own.command[0], "-pipe")
    monkeypatch.setenv("CC", "nonesuch")
    with pytest.raises(NoLibraryError, match="nonesuch"):
        compiling.find_compiler()


def test_without_a_compiler_that_of_a_package_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    zig = str(tmp_path / "ziglang" / "zig")
    assert compiling.find_compiler().command == (zig, "cc", "-mcpu=baseline")


def test_without_any_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoLibraryError, match="pip install ziglang"):
        compiling.find_compiler()


def test_the_key_tells_compilers_targets_and_sources_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = script(tmp_path / "one", "exit 1"), script(tmp_path / "two", "exit 11")
    other = Target("linux", "aarch64" if HOST.processor == "x86_64" else "x86_64")
    keys = {one.key(HOST), two.key(HOST), one.key(other)}
    before = HOST.name
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-g"))
    assert len({*keys, one.key(HOST)}) == 4
    assert HOST.name != before


def test_a_compiler_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", '"gcc')
    with pytest.raises(NoLibraryError, match="variable CC"):
        compiling.find_compiler()


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_library_is_not_taken_for_a_module(system: str) -> None:
    name = inspect.getmodulename(Target(system, "x86_64").name)
    assert name is None or "." in name
