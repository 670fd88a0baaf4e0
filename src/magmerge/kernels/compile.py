"""From C to a library: the compiler at hand, its flags, a file that is there whole or not at all

The build of wheels (hatch_build.py) uses this without any other package. What only a compilation
needs is imported there: mostly the library is there already.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = ("kernels.c", "levels.c")
FLAGS = (
    *("-O3", "-std=c11", "-fPIC", "-fvisibility=hidden"),
    # No bit may depend on the compiler: a product and a sum stay two roundings.
    "-ffp-contract=off",
    # Nobody reads the processor's marks of errors. Without these two, choices are not vectorised.
    *("-fno-trapping-math", "-fno-math-errno"),
)
LEVELS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "x86_64": {"sse2": (), "avx2": ("-mavx2", "-mfma", "-mf16c", "-mbmi2")},
        "aarch64": {"neon": ()},
    }
)
"""For each processor the levels of its instructions, the least first, and the flags of each."""
OTHER_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
ENDINGS = {"win32": ".dll", "darwin": ".dylib"}
PATIENCE = 300
"""Seconds after which a compiler is given up. It takes a few."""


class NoLibraryError(Exception):
    """There is no library to be had, and why; merges then run on torch."""


class Target(NamedTuple):
    """What a library is for: a system as `sys.platform` calls it, and a processor of LEVELS."""

    system: str
    processor: str

    @property
    def name(self) -> str:
        """The file's name in the package. That of other sources or flags is another."""
        ending = ENDINGS.get(self.system, ".so")
        # With dots nobody takes it for a module.
        return f"kernels.{self.processor}.{source_digest()}{ending}"


def this_machine() -> Target:
    """The target that this process can load; its processor may have no levels."""
    machine = platform.machine().lower()
    return Target(sys.platform, OTHER_NAMES.get(machine, machine))


class Compiler(NamedTuple):
    """The words that start a C compiler, to which its flags are added."""

    command: tuple[str, ...]

    def key(self, target: Target) -> str:
        """What changes when the library could: sources, flags, the compiler's file, the target."""
        state = os.stat(self.command[0])
        stamp = (state.st_size, state.st_mtime_ns)
        return _digest(source_digest(), *self.command, *map(str, stamp), *target)


def find_compiler() -> Compiler:
    """$CC, else cc, gcc or clang, else that of the package ziglang; NoLibraryError for none."""
    import importlib.util
    import shlex
    import shutil

    try:
        own = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise NoLibraryError(f"the variable CC names no command: {error}") from error
    if own:
        program = shutil.which(own[0])
        if program is None:
            raise NoLibraryError(f"there is no compiler {own[0]}, which the variable CC names")
        return Compiler((program, *own[1:]))
    for name in ("cc", "gcc", "clang"):
        program = shutil.which(name)
        if program is not None:
            return Compiler((program,))
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        raise NoLibraryError("no C compiler was found (install one, or: pip install ziglang)")
    zig = Path(package.origin).with_name("zig.exe" if sys.platform == "win32" else "zig")
    # Left to itself zig takes all that this very processor has, which is no level of ours.
    return Compiler((str(zig), "cc", "-mcpu=baseline"))


def source_digest() -> str:
    """What changes when the C files or their flags do."""
    flags = [f"{level}:{own}" for levels in LEVELS.values() for level, own in levels.items()]
    return _digest(*((HERE / name).read_bytes() for name in SOURCES), *FLAGS, *flags)


def _digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return whole.hexdigest()[:16]


def build_library(out: Path, compiler: Compiler, target: Target) -> None:
    """Compile every level of the target's processor into the one file `out`, in an existing folder.

    NoLibraryError where the processor has no level or the compiler fails; OSError where the folder
    cannot be written to. `out` is then as it was.
    """
    from concurrent.futures import ThreadPoolExecutor
    from tempfile import TemporaryDirectory

    levels = LEVELS.get(target.processor)
    if levels is None:
        raise NoLibraryError(f"there are no kernels for the processor {target.processor}")
    flags = [flag for flag in FLAGS if flag != "-fPIC" or target.system != "win32"]
    with TemporaryDirectory(prefix=".magmerge-partial-", dir=out.parent) as folder:
        objects = {"levels.o": [str(HERE / "levels.c")]}
        for level, own in levels.items():
            objects[f"{level}.o"] = [f"-DLEVEL={level}", *own, str(HERE / "kernels.c")]

        def compile_one(name: str) -> None:
            _run(compiler, [*flags, "-c", "-o", name, *objects[name]], folder)

        with ThreadPoolExecutor(len(objects)) as pool:
            list(pool.map(compile_one, objects))
        _run(compiler, ["-shared", *flags, "-o", out.name, *objects, "-lm"], folder)
        whole = Path(folder, out.name)
        with whole.open("rb+") as stream:
            os.fsync(stream.fileno())
        # Whatever the umask: a file that others may write to would not be loaded.
        whole.chmod(0o755)
        os.replace(whole, out)


def _run(compiler: Compiler, arguments: list[str], folder: str) -> None:
    """Run the compiler in the folder; NoLibraryError with the first of its words if it fails."""
    import subprocess

    command = [*compiler.command, *arguments]
    name = os.path.basename(compiler.command[0])
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NoLibraryError(f"{name} did not end within {PATIENCE} s") from error
    except OSError as error:
        raise NoLibraryError(f"{name} cannot be run: {error.strerror}") from error
    lines = done.stderr.decode(errors="replace").split("\n")
    if done.returncode != 0:
        told = next((line for line in lines if "error" in line), lines[0])
        raise NoLibraryError(f"{name} failed: {told.strip() or f'exit code {done.returncode}'}")
